//! One request and its answer on one connection to an engine, under one lease.
//!
//! ```text
//!  begin ──► Head ──► Body ──► Done      connection back to the pool, lease released
//!             │        │
//!             │        └──── dropped     Cancel: connection closed, lease released
//!             ├───────────── dropped     Drain:  read to its end elsewhere, then released
//!             └──► Broken    no answer comes: given up for another try, or dropped and released
//! ```

use super::{
    gate::Lease,
    pool::{EngineRequest, Link, Pool},
};
use crate::config::DisconnectPolicy;
use bytes::Bytes;
use http::{Response, response};
use http_body::{Body as _, SizeHint};
use hyper::body::Incoming;
use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};
use tokio::sync::mpsc;

type Reply = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>>>>;

/// What exchanges share.
pub struct Exchanges {
    /// Where connections come from and go back to.
    pub pool: Pool,
    /// Exchanges whose clients went away, for [`drain`].
    abandoned: mpsc::UnboundedSender<Exchange>,
}

impl Exchanges {
    /// An empty pool, and the abandoned exchanges that [`drain`] takes care of.
    pub fn new() -> (Rc<Self>, mpsc::UnboundedReceiver<Exchange>) {
        let (abandoned, to_drain) = mpsc::unbounded_channel();
        (Rc::new(Self { pool: Pool::default(), abandoned }), to_drain)
    }
}

/// One request on its way.
pub struct Exchange {
    shared: Rc<Exchanges>,
    running: Option<Running>,
}

struct Running {
    stage: Stage,
    link: Link,
    lease: Lease,
}

enum Stage {
    Head(Reply),
    Body(Incoming),
    Broken,
}

impl Exchange {
    /// Sends a request on `link`.
    pub fn begin(shared: Rc<Exchanges>, mut link: Link, lease: Lease, request: EngineRequest) -> Self {
        let stage = Stage::Head(Box::pin(link.sender.send_request(request)));
        Self { shared, running: Some(Running { stage, link, lease }) }
    }

    /// The answer's status and headers.
    pub fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<hyper::Result<response::Parts>> {
        let running = self.running.as_mut().expect("a head is awaited before the exchange is done");
        let Stage::Head(reply) = &mut running.stage else { unreachable!("a head comes once") };
        let mut answer = reply.as_mut().poll(cx);
        if answer.is_pending() {
            running.link.drive(cx);
            answer = reply.as_mut().poll(cx);
        }
        match ready!(answer) {
            Ok(answer) => {
                let (head, body) = answer.into_parts();
                running.stage = Stage::Body(body);
                Poll::Ready(Ok(head))
            }
            Err(error) => {
                running.stage = Stage::Broken;
                Poll::Ready(Err(error))
            }
        }
    }

    /// The next bytes of the answer's body; `None` once, at its end, when the lease has been released.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Bytes>>> {
        loop {
            let Some(running) = &mut self.running else { return Poll::Ready(None) };
            let Stage::Body(body) = &mut running.stage else { unreachable!("the head comes first") };
            let mut frame = Pin::new(&mut *body).poll_frame(cx);
            if frame.is_pending() {
                running.link.drive(cx);
                frame = Pin::new(&mut *body).poll_frame(cx);
            }
            match ready!(frame) {
                Some(Ok(frame)) => {
                    if body.is_end_stream() {
                        self.done(cx);
                    }
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                None => self.done(cx),
            }
        }
    }

    /// Whether the engine's last byte has been read.
    pub fn is_done(&self) -> bool {
        self.running.is_none()
    }

    /// What is known of the length of the rest of the body.
    pub fn size_hint(&self) -> SizeHint {
        match &self.running {
            Some(Running { stage: Stage::Body(body), .. }) => body.size_hint(),
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(0),
        }
    }

    /// Closes the connection and takes the lease back, for another try.
    pub fn give_up(mut self) -> Option<Lease> {
        self.running.take().map(|running| running.lease)
    }

    /// Closes the connection and ends the lease, whatever the engine bears.
    pub fn abandon(&mut self) {
        drop(self.running.take());
    }

    /// Ends an exchange for which an upgrade was granted.
    pub fn into_upgrade(mut self) -> Option<(Link, Lease)> {
        self.running.take().map(|running| (running.link, running.lease))
    }

    /// The engine is done with the request: its lease ends, its connection is kept.
    fn done(&mut self, cx: &mut Context<'_>) {
        if let Some(Running { stage, link, lease }) = self.running.take() {
            drop(stage);
            self.shared.pool.put(&lease.upstream, link, cx);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let Some(running) = self.running.take() else { return };
        let left = running.lease.on_disconnect == DisconnectPolicy::Drain && !*running.lease.lost.borrow();
        let drained = left && !matches!(running.stage, Stage::Broken);
        if drained {
            let left = Exchange { shared: self.shared.clone(), running: Some(running) };
            if let Err(unsent) = self.shared.abandoned.send(left) {
                // The router has ended: nobody is left to read, so the connection is closed.
                drop(unsent.0.give_up());
            }
        }
    }
}

/// Reads every abandoned exchange to its end, for engines that can't bear a cancel. Runs as long as the router.
pub async fn drain(mut abandoned: mpsc::UnboundedReceiver<Exchange>) {
    while let Some(exchange) = abandoned.recv().await {
        tokio::task::spawn_local(read_out(exchange));
    }
}

async fn read_out(mut exchange: Exchange) {
    let Some(mut lost) = exchange.running.as_ref().map(|r| r.lease.lost.clone()) else { return };
    tokio::select! {
        () = std::future::poll_fn(|cx| exchange.poll_to_end(cx)) => {}
        Ok(_) = lost.wait_for(|lost| *lost) => {}
    }
    drop(exchange.give_up());
}

impl Exchange {
    fn poll_to_end(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if matches!(&self.running, Some(Running { stage: Stage::Head(_), .. }))
            && ready!(self.poll_head(cx)).is_err()
        {
            return Poll::Ready(());
        }
        while let Some(Ok(_)) = ready!(self.poll_data(cx)) {}
        Poll::Ready(())
    }
}

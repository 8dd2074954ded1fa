//! The daemon's side of holding: where the processes of an engine that was launched ahead of its turn ask whether they may
//! use the GPU.
//!
//! ```text
//!  process ── cuInit ──▶ preload library ── SWAPSERVE_HOLD ──▶ Hold: asked ──release──▶ the word, to each at once
//!                                                                 └──drop──▶ closed: the process ends
//! ```
//!
//! The socket has a random abstract name, so nothing is left of it, and no path is too long or swept away. Other users can
//! find the name: they get no answer here, and theirs is not taken in the library. It is there for as long as the engine
//! runs, because each process asks for itself, also one that the engine starts later.

use std::{
    ffi::OsString,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener as Bound},
    },
    time::Duration,
};
use tokio::{
    io::AsyncWriteExt,
    net::{UnixListener, UnixStream},
    sync::watch,
    task::{AbortHandle, JoinSet},
};

/// Variable that tells the preload library where to ask.
const VARIABLE: &str = "SWAPSERVE_HOLD";
/// The word that lets a process pass.
const GO: u8 = b'g';
/// Pause after a connection could not be taken: this process has no descriptors left.
const RETRY: Duration = Duration::from_millis(100);

/// One launch's processes, held until [`Hold::release`]. When it is dropped those that wait end, and later ones at their
/// first use of the GPU.
#[derive(Debug)]
pub struct Hold {
    name: String,
    released: watch::Sender<bool>,
    asked: watch::Receiver<bool>,
    answering: AbortHandle,
}

impl Hold {
    /// Begins to listen. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// When the kernel gives no randomness or no socket.
    pub fn open() -> io::Result<Self> {
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!("swapserve-hold-{:032x}", u128::from_le_bytes(random));
        let listener = Bound::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (released, when_released) = watch::channel(false);
        let (tell_asked, asked) = watch::channel(false);
        let answering = tokio::spawn(answer(listener, when_released, tell_asked)).abort_handle();
        Ok(Hold { name, released, asked, answering })
    }

    /// What every process of the engine needs in its environment, beside the preload library. A container may be told to
    /// keep the environment out: then it is passed on under Apptainer's own name.
    pub fn environment(&self, container: bool) -> Vec<(OsString, OsString)> {
        let address = OsString::from(format!("@{}", self.name));
        let inside = container.then(|| (format!("APPTAINERENV_{VARIABLE}").into(), address.clone()));
        [(VARIABLE.into(), address)].into_iter().chain(inside).collect()
    }

    /// Its turn has come: those that wait go on, and later ones do not wait.
    pub fn release(&self) {
        self.released.send_replace(true);
    }

    /// Whether its turn has come.
    pub fn is_released(&self) -> bool {
        *self.released.borrow()
    }

    /// Whether a process has asked.
    pub fn was_asked(&self) -> bool {
        *self.asked.borrow()
    }

    /// Comes back when a process has asked. The future holds no borrow.
    pub fn asked(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut asked = self.asked.clone();
        async move {
            if asked.wait_for(|asked| *asked).await.is_err() {
                // Nobody can ask any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.answering.abort();
    }
}

/// Takes every connection of this user and answers it once the engine is released. Dropped, it closes them all.
async fn answer(listener: UnixListener, released: watch::Receiver<bool>, asked: watch::Sender<bool>) {
    let mut waiting = JoinSet::new();
    loop {
        tokio::select! {
            taken = listener.accept() => match taken {
                Ok((socket, _)) if is_ours(&socket) => {
                    asked.send_replace(true);
                    waiting.spawn(give_word(socket, released.clone()));
                }
                Ok(_) => {}
                Err(_) => tokio::time::sleep(RETRY).await,
            },
            Some(_) = waiting.join_next() => {}
        }
    }
}

async fn give_word(mut socket: UnixStream, mut released: watch::Receiver<bool>) {
    if released.wait_for(|released| *released).await.is_ok() {
        // A process that has ended meanwhile needs no word.
        let _ = socket.write_all(&[GO]).await;
    }
}

fn is_ours(socket: &UnixStream) -> bool {
    socket.peer_cred().is_ok_and(|peer| peer.uid() == rustix::process::geteuid().as_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncReadExt;

    async fn ask(hold: &Hold) -> UnixStream {
        let address = SocketAddr::from_abstract_name(&hold.name).expect("a short name");
        let socket = std::os::unix::net::UnixStream::connect_addr(&address).expect("it listens");
        socket.set_nonblocking(true).expect("a socket can be");
        UnixStream::from_std(socket).expect("it is a socket")
    }

    #[tokio::test]
    async fn whoever_asks_waits_for_the_word_and_later_ones_get_it_at_once() {
        let hold = Hold::open().expect("it can listen");
        assert!(!hold.was_asked());
        let mut early = ask(&hold).await;
        hold.asked().await;
        assert!(hold.was_asked() && !hold.is_released());
        let mut word = [0];
        assert_eq!(early.try_read(&mut word).expect_err("nothing yet").kind(), io::ErrorKind::WouldBlock);
        hold.release();
        assert_eq!(early.read(&mut word).await.expect("the word"), 1);
        assert_eq!(word, [GO]);
        let mut late = ask(&hold).await;
        assert_eq!(late.read(&mut word).await.expect("the word"), 1);
    }

    #[tokio::test]
    async fn those_that_wait_when_it_is_dropped_are_turned_away() {
        let hold = Hold::open().expect("it can listen");
        let mut waiting = ask(&hold).await;
        hold.asked().await;
        drop(hold);
        assert_eq!(waiting.read(&mut [0]).await.expect("closed"), 0);
    }
}

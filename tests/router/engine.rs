//! An engine that does what the test says, byte for byte: it reads one request, and plays a script.

use std::{cell::RefCell, path::Path, rc::Rc};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    sync::{Semaphore, mpsc},
    task::spawn_local,
};

/// What the engine does with a request.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes these bytes.
    Send(Vec<u8>),
    /// Waits until the test lets it go on.
    Wait,
    /// Closes the connection.
    Close,
    /// Sends back all it gets from here on.
    Echo,
}

/// `Send` of text.
pub fn send(text: impl Into<Vec<u8>>) -> Step {
    Step::Send(text.into())
}

/// A whole JSON answer.
pub fn json(status: u16, body: &str) -> Step {
    let length = body.len();
    send(format!(
        "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    ))
}

/// The head of an event stream.
pub fn events() -> Step {
    send("HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
}

/// One chunk of a chunked body; an empty one ends it.
pub fn chunk(data: &str) -> Step {
    send(format!("{:x}\r\n{data}\r\n", data.len()))
}

/// A request as the engine saw it.
#[derive(Clone, Debug)]
pub struct Seen {
    /// Which connection it came on, from 0.
    pub connection: usize,
    /// Everything up to the blank line, in lower case but for the first line.
    pub head: String,
    pub body: String,
}

impl Seen {
    pub fn first_line(&self) -> &str {
        self.head.lines().next().unwrap()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).filter_map(|l| l.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }
}

/// What happens at the engine, in order.
#[derive(Debug)]
pub enum Happened {
    Request(Seen),
    /// The router closed the connection in the middle of a script.
    Gone,
    /// A script was played to its end.
    Played,
}

/// The engine's end of the test.
pub struct TestEngine {
    scripts: Rc<RefCell<Vec<Vec<Step>>>>,
    go: Rc<Semaphore>,
    pub happened: mpsc::UnboundedReceiver<Happened>,
}

impl TestEngine {
    /// Listens on a Unix socket. Each request plays the next script; the last one is played again and again.
    pub fn start(socket: &Path, scripts: Vec<Vec<Step>>) -> Self {
        let listener = UnixListener::bind(socket).unwrap();
        let (tell, happened) = mpsc::unbounded_channel();
        let scripts = Rc::new(RefCell::new(scripts));
        let go = Rc::new(Semaphore::new(0));
        let engine = Self { scripts: scripts.clone(), go: go.clone(), happened };
        spawn_local(async move {
            for connection in 0.. {
                let Ok((stream, _)) = listener.accept().await else { return };
                spawn_local(serve(stream, connection, scripts.clone(), go.clone(), tell.clone()));
            }
        });
        engine
    }

    /// Lets one `Wait` pass.
    pub fn go(&self) {
        self.go.add_permits(1);
    }

    /// Plays these from now on.
    pub fn play(&self, scripts: Vec<Vec<Step>>) {
        *self.scripts.borrow_mut() = scripts;
    }

    /// The next request.
    pub async fn request(&mut self) -> Seen {
        loop {
            match self.happened.recv().await.unwrap() {
                Happened::Request(seen) => return seen,
                Happened::Gone | Happened::Played => {}
            }
        }
    }

    /// Waits until the router has closed a connection in the middle of a script.
    pub async fn gone(&mut self) {
        while !matches!(self.happened.recv().await.unwrap(), Happened::Gone) {}
    }
}

async fn serve(
    mut stream: UnixStream,
    connection: usize,
    scripts: Rc<RefCell<Vec<Vec<Step>>>>,
    go: Rc<Semaphore>,
    tell: mpsc::UnboundedSender<Happened>,
) {
    let mut buffer = Vec::new();
    while let Some(seen) = read_request(&mut stream, &mut buffer, connection).await {
        tell.send(Happened::Request(seen)).unwrap();
        let script = {
            let mut scripts = scripts.borrow_mut();
            if scripts.len() > 1 { scripts.remove(0) } else { scripts[0].clone() }
        };
        for step in script {
            match step {
                Step::Send(bytes) => {
                    if stream.write_all(&bytes).await.is_err() {
                        tell.send(Happened::Gone).unwrap();
                        return;
                    }
                }
                Step::Wait => {
                    let mut one = [0];
                    tokio::select! {
                        permit = go.acquire() => permit.unwrap().forget(),
                        _ = stream.read(&mut one) => {
                            let _ = tell.send(Happened::Gone);
                            return;
                        }
                    }
                }
                Step::Close => return,
                Step::Echo => {
                    let (mut from, mut to) = stream.split();
                    tokio::io::copy(&mut from, &mut to).await.unwrap();
                    let _ = tell.send(Happened::Gone);
                    return;
                }
            }
        }
        if tell.send(Happened::Played).is_err() {
            return;
        }
    }
}

async fn read_request(stream: &mut UnixStream, buffer: &mut Vec<u8>, connection: usize) -> Option<Seen> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    };
    let head = String::from_utf8(buffer[..head_end].to_vec()).unwrap();
    let mut seen = Seen { connection, head, body: String::new() };
    let length = seen.header("content-length").map_or(0, |l| l.parse::<usize>().unwrap());
    while buffer.len() < head_end + 4 + length {
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
    seen.body = String::from_utf8_lossy(&buffer[head_end + 4..head_end + 4 + length]).into_owned();
    buffer.drain(..head_end + 4 + length);
    Some(seen)
}

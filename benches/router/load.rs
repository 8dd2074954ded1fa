//! The client: blocking sockets and nothing else, so that what is measured is the other side.

use nix::{
    sched::{CpuSet, sched_getaffinity, sched_setaffinity},
    sys::resource::{Resource, getrlimit, setrlimit},
    unistd::Pid,
};
use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

/// Binds this process, and those it starts, to the last of its cores.
pub fn share_one_core() {
    let cores = sched_getaffinity(Pid::from_raw(0)).expect("the affinity can be read");
    let last = (0..CpuSet::count()).rev().find(|core| cores.is_set(*core).unwrap_or(false));
    let mut one = CpuSet::new();
    one.set(last.expect("there is a core")).expect("a core of the set");
    sched_setaffinity(Pid::from_raw(0), &one).expect("a subset of what it had");
}

/// Allows as many descriptors as the hard limit does.
pub fn raise_descriptor_limit() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("the soft limit can be raised to the hard one");
}

/// A kept connection that sends one request at a time.
pub struct Client {
    stream: TcpStream,
    request: Vec<u8>,
    buffer: Box<[u8; 16384]>,
}

impl Client {
    /// Connects; `streamed` asks for a stream.
    pub fn connect(address: SocketAddr, streamed: bool) -> std::io::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let prompt = "Why is the sky blue? Answer in one sentence. ".repeat(12);
        let body = format!(
            r#"{{"model":"m","stream":{streamed},"temperature":0.5,"messages":[{{"role":"user","content":"{prompt}"}}]}}"#
        );
        let request = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer bench-key\r\n\
             content-type: application/json\r\naccept: */*\r\nuser-agent: bench\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        Ok(Self { stream, request: request.into_bytes(), buffer: Box::new([0; 16384]) })
    }

    /// Sends the request and reads until the whole answer has come.
    pub fn ask(&mut self) -> std::io::Result<Duration> {
        let begun = Instant::now();
        self.stream.write_all(&self.request)?;
        let mut have = 0;
        loop {
            match self.stream.read(&mut self.buffer[have..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => have += n,
            }
            if self.buffer[..have].ends_with(b"}}") {
                break;
            }
        }
        let took = begun.elapsed();
        assert!(
            self.buffer.starts_with(b"HTTP/1.1 200"),
            "{}",
            String::from_utf8_lossy(&self.buffer[..have])
        );
        Ok(took)
    }

    /// Sends the request without waiting.
    pub fn begin(&mut self) -> std::io::Result<()> {
        self.stream.write_all(&self.request)
    }

    /// Reads until the first event of a stream has come.
    pub fn first_event(&mut self) -> std::io::Result<()> {
        let mut have = 0;
        while memchr::memmem::find(&self.buffer[..have], b"}\n\n").is_none() {
            match self.stream.read(&mut self.buffer[have..])? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => have += n,
            }
        }
        Ok(())
    }
}

/// The times of `count` requests, sorted.
pub fn times(client: &mut Client, count: usize) -> Vec<Duration> {
    let mut times: Vec<_> = (0..count).map(|_| client.ask().expect("an answer")).collect();
    times.sort_unstable();
    times
}

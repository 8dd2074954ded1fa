//! A client that sends exactly the bytes it is given and shows exactly what came back.

use std::{net::SocketAddr, path::Path};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
};

/// An answer, its chunked framing undone.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
    /// Whether the body had its proper end.
    pub complete: bool,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).filter_map(|l| l.split_once(": ")).find(|(n, _)| *n == name).map(|(_, v)| v)
    }

    /// The `code` of the error object.
    pub fn code(&self) -> String {
        let value: serde_json::Value = serde_json::from_str(&self.body).expect(&self.body);
        let error = value["error"].as_object().expect("an error object");
        assert!(["message", "type", "param", "code"].iter().all(|field| error.contains_key(*field)));
        error["code"].as_str().unwrap().to_owned()
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// One connection.
pub struct Client {
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
}

impl Client {
    pub async fn tcp(address: SocketAddr) -> Self {
        Self { stream: Box::new(TcpStream::connect(address).await.unwrap()), buffer: Vec::new() }
    }

    pub async fn unix(path: &Path) -> Self {
        Self { stream: Box::new(UnixStream::connect(path).await.unwrap()), buffer: Vec::new() }
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    /// No more will be sent; the answer can still be read.
    pub async fn half_close(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Sends a POST with the test's key and gives its answer.
    pub async fn post(&mut self, path: &str, body: &str) -> Answer {
        self.send(post(path, body)).await;
        self.answer().await
    }

    pub async fn get(&mut self, path: &str) -> Answer {
        self.send(format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\r\n")).await;
        self.answer().await
    }

    /// Whether nothing has come, and the connection is open.
    pub fn is_quiet(&mut self) -> bool {
        use futures_util::FutureExt;
        self.buffer.is_empty() && self.more().now_or_never().is_none()
    }

    /// More bytes, or false at the end.
    async fn more(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.is_ok_and(|n| n > 0)
    }

    /// Reads until `text` has come; gives all up to its end.
    pub async fn until(&mut self, text: &str) -> String {
        let end = self.seen(text).await;
        String::from_utf8(self.buffer.drain(..end).collect()).unwrap()
    }

    /// Reads until `text` has come, and takes nothing; gives where it ends.
    pub async fn seen(&mut self, text: &str) -> usize {
        loop {
            if let Some(at) = self.buffer.windows(text.len()).position(|w| w == text.as_bytes()) {
                return at + text.len();
            }
            let so_far = String::from_utf8_lossy(&self.buffer).into_owned();
            assert!(self.more().await, "the connection ended before {text:?}; there was {so_far:?}");
        }
    }

    /// Reads to the connection's end.
    pub async fn rest(&mut self) -> String {
        while self.more().await {}
        String::from_utf8_lossy(&std::mem::take(&mut self.buffer)).into_owned()
    }

    /// One whole answer.
    pub async fn answer(&mut self) -> Answer {
        let head = self.until("\r\n\r\n").await;
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let mut answer = Answer { status, head, body: String::new(), complete: true };
        if let Some(length) = answer.header("content-length").map(|l| l.parse::<usize>().unwrap()) {
            while answer.complete && self.buffer.len() < length {
                answer.complete = self.more().await;
            }
            let body = self.buffer.drain(..length.min(self.buffer.len())).collect();
            answer.body = String::from_utf8(body).unwrap();
        } else if answer.header("transfer-encoding") == Some("chunked") {
            answer.complete = self.chunks(&mut answer.body).await;
        } else {
            answer.body = self.rest().await;
        }
        answer
    }

    async fn chunks(&mut self, body: &mut String) -> bool {
        loop {
            let size = loop {
                if let Some(at) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                    let line: Vec<u8> = self.buffer.drain(..at + 2).collect();
                    break usize::from_str_radix(std::str::from_utf8(&line[..at]).unwrap(), 16).unwrap();
                }
                if !self.more().await {
                    return false;
                }
            };
            while self.buffer.len() < size + 2 {
                if !self.more().await {
                    return false;
                }
            }
            let data: Vec<u8> = self.buffer.drain(..size + 2).take(size).collect();
            if data.is_empty() {
                return true;
            }
            body.push_str(std::str::from_utf8(&data).unwrap());
        }
    }
}

/// A POST with the test's key.
pub fn post(path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}

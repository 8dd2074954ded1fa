//! The server: enough of HTTP/1.1 and of OpenAI's API for clients, routers and tests.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};

use crate::cuda::Cuda;
use crate::memory::Held;
use crate::options::Options;
use crate::script::Script;
use crate::workers::Workers;

/// All that an answer depends on.
#[derive(Debug)]
pub struct Engine {
    pub options: Options,
    pub cuda: Cuda,
    pub held: Mutex<Held>,
    pub workers: Mutex<Workers>,
    pub script: Script,
}

fn take<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where clients come in, and one of them that waits for the model.
pub struct Door {
    listener: TcpListener,
    first: Option<TcpStream>,
}

impl Door {
    /// Listens.
    pub fn open(port: u16) -> Result<Self, String> {
        let listener = TcpListener::bind(("127.0.0.1", port)).map_err(|error| error.to_string())?;
        let port = listener.local_addr().map_err(|error| error.to_string())?.port();
        println!("listening on 127.0.0.1:{port}");
        Ok(Self { listener, first: None })
    }

    /// Says that all is well until the first other request comes, without a GPU.
    pub fn wait_for_request(&mut self) {
        const HEALTH: &[u8] = b"GET /health";
        while self.first.is_none() {
            let Ok((mut stream, _)) = self.listener.accept() else { continue };
            let mut begin = [0; HEALTH.len()];
            match stream.peek(&mut begin) {
                Ok(read) if begin[..read] == *HEALTH => {
                    // A client that goes away asks again.
                    let _ = stream.read(&mut [0; 4096]).and_then(|_| respond(&mut stream, 200, &json!({})));
                }
                Ok(read) if read > 0 => self.first = Some(stream),
                _ => {}
            }
        }
    }
}

/// Answers, a thread a connection, for ever.
pub fn serve(engine: &Arc<Engine>, door: Door) -> Result<(), String> {
    for stream in door.first.into_iter().chain(door.listener.incoming().flatten()) {
        let engine = Arc::clone(engine);
        std::thread::spawn(move || {
            // A client that goes away ends its own connection and nothing else.
            let _ = converse(&engine, stream);
        });
    }
    Ok(())
}

fn converse(engine: &Engine, stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut writer = stream.try_clone()?;
    let mut reader = BufReader::new(stream);
    if let Err(error) = engine.cuda.use_device(0) {
        return respond(&mut writer, 500, &json!({"error": {"message": error}}));
    }
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(());
        }
        let mut words = first.split_whitespace();
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut length = 0;
        loop {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            match line.trim_end().split_once(':') {
                Some((name, value)) if name.eq_ignore_ascii_case("content-length") => {
                    length = value.trim().parse().unwrap_or(0);
                }
                Some(_) => {}
                None => break,
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        answer(engine, &mut writer, method, target, &body)?;
    }
}

fn answer(
    engine: &Engine,
    writer: &mut TcpStream,
    method: &str,
    target: &str,
    body: &Value,
) -> std::io::Result<()> {
    let path = target.split('?').next().unwrap_or_default();
    let done = |result: Result<(), String>| result.map(|()| json!({"ok": true}));
    let result = match (method, path) {
        ("GET", "/health" | "/ping") => match &engine.options.hold {
            Some(file) if std::path::Path::new(file).exists() => return respond(writer, 503, &json!({})),
            _ => Ok(json!({})),
        },
        ("GET", "/v1/models") => {
            Ok(json!({"object": "list", "data": [{"id": engine.options.model, "object": "model"}]}))
        }
        ("GET" | "POST", "/check") => done(engine.check(true)),
        ("POST", "/sleep") => done(take(&engine.held).sleep(&engine.cuda)),
        ("POST", "/wake_up") => done(take(&engine.held).wake(&engine.cuda)),
        ("GET", "/is_sleeping") => Ok(json!({"is_sleeping": take(&engine.held).asleep()})),
        ("POST", "/do") => engine.script.step(&engine.cuda, body),
        ("POST", "/v1/completions" | "/v1/chat/completions") => {
            let chat = path.contains("chat");
            if body["stream"] == true {
                return stream(engine, writer, body, chat);
            }
            engine.check(false).and_then(|()| engine.complete(body, chat))
        }
        _ => return respond(writer, 404, &json!({"error": {"message": format!("no {method} {path}")}})),
    };
    match result {
        Ok(value) => respond(writer, 200, &value),
        Err(error) => respond(writer, 500, &json!({"error": {"message": error, "type": "engine_error"}})),
    }
}

fn respond(writer: &mut TcpStream, status: u16, value: &Value) -> std::io::Result<()> {
    let text = value.to_string();
    let reason = if status == 200 { "OK" } else { "Error" };
    write!(
        writer,
        "HTTP/1.1 {status} {reason}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{text}",
        text.len()
    )
}

fn tokens(body: &Value) -> u32 {
    let wanted = body["max_completion_tokens"].as_u64().or_else(|| body["max_tokens"].as_u64());
    wanted.unwrap_or(16).clamp(1, 100_000) as u32
}

fn stream(engine: &Engine, writer: &mut TcpStream, body: &Value, chat: bool) -> std::io::Result<()> {
    write!(
        writer,
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    )?;
    let mut event = |data: &str| {
        let text = format!("data: {data}\n\n");
        write!(writer, "{:x}\r\n{text}\r\n", text.len())
    };
    let pause = Duration::from_millis(body["pause_ms"].as_u64().unwrap_or(2));
    for number in 0..tokens(body) {
        let data = match engine.token(number) {
            Ok(token) if chat => json!({"object": "chat.completion.chunk", "model": engine.options.model,
                "choices": [{"index": 0, "delta": {"content": token}}]}),
            Ok(token) => json!({"object": "text_completion", "model": engine.options.model,
                "choices": [{"index": 0, "text": token}]}),
            Err(error) => json!({"error": {"message": error}}),
        };
        event(&data.to_string())?;
        std::thread::sleep(pause);
    }
    event("[DONE]")?;
    write!(writer, "0\r\n\r\n")
}

impl Engine {
    fn check(&self, whole: bool) -> Result<(), String> {
        take(&self.held).check(&self.cuda, whole)?;
        take(&self.workers).check(whole)
    }

    /// The token at a place in the answer: read from the device's memory.
    fn token(&self, number: u32) -> Result<String, String> {
        let word = take(&self.held).word(&self.cuda, number)?;
        Ok(format!("{}{number:04}-{:04x} ", self.options.model, word & 0xffff))
    }

    fn complete(&self, body: &Value, chat: bool) -> Result<Value, String> {
        let wanted = tokens(body);
        let text = (0..wanted).map(|number| self.token(number)).collect::<Result<String, _>>()?;
        let usage = json!({"prompt_tokens": 1, "completion_tokens": wanted, "total_tokens": wanted + 1});
        let choice = if chat {
            json!({"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"})
        } else {
            json!({"index": 0, "text": text, "finish_reason": "length"})
        };
        let object = if chat { "chat.completion" } else { "text_completion" };
        Ok(json!({"id": "gpu-engine", "object": object, "created": 0, "model": self.options.model,
            "choices": [choice], "usage": usage}))
    }
}

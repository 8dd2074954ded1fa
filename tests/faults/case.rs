//! One case: a run with two models, of which `victim` suffers and `other` is asked all the while.

use crate::service::{Service, eventually};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use std::{
    cell::Cell,
    fs::OpenOptions,
    io::{BufRead, BufReader, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Instant,
};

/// Whether this way, state and fault are struck together: `scripts/faults` has each with each, `cargo test` a cross-section in which
/// every way, every state and every fault has its turn.
pub fn chosen(way: usize, state: usize, fault: Option<usize>) -> bool {
    let whole = std::env::var_os("SWAPSERVE_FAULT_ROWS").is_some();
    whole || (way == state % 2 && fault.is_none_or(|fault| fault == state / 2 % 2))
}

/// Asks `other` again and again until it is dropped.
pub struct Bystander {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Bystander {
    pub fn begin(service: &Service) -> Self {
        let (stop, asked, lost) =
            (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::<AtomicU64>::default());
        let request = service.chat("other", json!({ "max_tokens": 4 }));
        let (ends, counts, losses) = (stop.clone(), asked.clone(), lost.clone());
        let thread = std::thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let answer = request.try_clone().expect("its body is in memory").send();
                let good = answer.is_ok_and(|answer| answer.status() == 200 && answer.bytes().is_ok());
                counts.fetch_add(1, Ordering::Relaxed);
                losses.fetch_add(u64::from(!good), Ordering::Relaxed);
            }
        });
        Self { stop, asked, lost, thread: Some(thread) }
    }

    /// How many it asked, and how many were lost.
    pub fn end(mut self) -> (u64, u64) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().expect("it is ended once").join().unwrap();
        (self.asked.load(Ordering::Relaxed), self.lost.load(Ordering::Relaxed))
    }
}

impl Drop for Bystander {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A case under way.
pub struct Case {
    pub service: Service,
    pub name: &'static str,
    pub fault: &'static str,
    pub state: &'static str,
    bystander: Bystander,
    begun: Cell<Instant>,
}

impl Case {
    /// The run is up and the bystander asks; the fault comes next.
    pub fn begin(service: Service, name: &'static str, fault: &'static str, state: &'static str) -> Self {
        eventually("the other model answers", || service.model("other")["state"] == "resident");
        let bystander = Bystander::begin(&service);
        Self { service, name, fault, state, bystander, begun: Cell::new(Instant::now()) }
    }

    /// The fault strikes now.
    pub fn strike(&self, strike: impl FnOnce(&Service)) {
        self.begun.set(Instant::now());
        strike(&self.service);
    }

    /// Waits until the victim answers, and notes what was seen. The other model has lost nothing.
    pub fn recovers(self, outcome: &str) {
        self.service.answer("victim");
        self.done(outcome);
    }

    /// Notes what was seen.
    pub fn done(self, outcome: &str) {
        let seconds = self.begun.get().elapsed().as_secs_f64();
        // At least one more request of the bystander's after all of it.
        self.service.answer("other");
        let (asked, lost) = self.bystander.end();
        println!(
            "{:28} {:14} {:14} {outcome:44} {seconds:5.1} s, {lost} of {asked} lost elsewhere",
            self.name, self.fault, self.state
        );
        row(&json!({
            "engine": self.name, "fault": self.fault, "state": self.state, "outcome": outcome,
            "requests_elsewhere": asked, "requests_lost_elsewhere": lost, "seconds": (seconds * 100.0).round() / 100.0,
        }));
        assert_eq!(lost, 0, "{}: {} in {}\n{}", self.name, self.fault, self.state, self.service.log());
    }
}

/// Keeps a row where they are wanted.
pub fn row(row: &Value) {
    if let Some(path) = std::env::var_os("SWAPSERVE_FAULT_ROWS") {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "{row}").unwrap();
    }
}

/// The first process of a model's engine.
pub fn pid(service: &Service, model: &str) -> Option<i32> {
    service.model(model)["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok())
}

/// The first process that is not this one.
pub fn another_pid(service: &Service, model: &str, than: i32) {
    eventually("another engine runs", || pid(service, model).is_some_and(|pid| pid != than));
}

pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// Whether a process is stopped.
pub fn is_stopped(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('T'))
}

/// The living children of a process.
pub fn children(pid: i32) -> Vec<i32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let lists = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
    lists
        .flat_map(|list| list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<_>>())
        .collect()
}

/// A stream of the victim's, begun.
pub struct Stream(std::io::Lines<BufReader<reqwest::blocking::Response>>);

impl Stream {
    pub fn begin(service: &Service) -> Self {
        let answer = service.chat("victim", json!({ "stream": true, "max_tokens": 100_000 })).send().unwrap();
        assert_eq!(answer.status(), 200);
        let mut stream = Self(BufReader::new(answer).lines());
        assert!((0..3).all(|_| stream.piece().is_some_and(|piece| piece["error"].is_null())));
        stream
    }

    /// The next event; nothing at the end, orderly or not.
    pub fn piece(&mut self) -> Option<Value> {
        loop {
            let line = self.0.next()?.ok()?;
            if let Some(data) = line.strip_prefix("data: ") {
                return serde_json::from_str(data).ok();
            }
        }
    }

    /// Reads on to an error event.
    pub fn error(&mut self) -> String {
        loop {
            let piece = self.piece().expect("a stream that breaks ends with an error event");
            if let Some(code) = piece["error"]["code"].as_str() {
                return code.to_owned();
            }
        }
    }
}

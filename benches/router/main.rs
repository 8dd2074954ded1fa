//! What the router adds to a request, beside a direct call and nginx as a plain reverse proxy, in one run.
//!
//! ```text
//! cargo bench --bench router -- [--rounds 15] [--requests 4000] [--streams 2000] [--idle 10000] [--rows FILE] [--commit ID]
//! ```
//!
//! One client sends one request at a time over a kept connection, round by round to each of the three, and the medians
//! of the rounds' medians are compared. Everything shares one core, so that no figure has another core's wake-up in
//! it; the processor time that a proxy takes for a request is read from the kernel and stands beside. Then streams
//! and idle connections are held open, and the router's memory is read. Without nginx its rows are left out.

#[expect(dead_code, reason = "the gate of the tests can do more than a benchmark asks of it")]
#[path = "../../tests/router/gate.rs"]
mod gate;

mod load;
mod proxies;
mod report;
mod roles;

use proxies::Proxy;
use report::Report;

/// The command line.
pub struct Options {
    rounds: usize,
    requests: usize,
    streams: usize,
    idle: usize,
    rows: Option<String>,
    commit: String,
}

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Self {
        let mut options = Self {
            rounds: 15,
            requests: 4000,
            streams: 2000,
            idle: 10_000,
            rows: None,
            commit: String::new(),
        };
        while let Some(key) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{key} needs a value"));
            match key.as_str() {
                "--rounds" => options.rounds = value().parse().expect("a number"),
                "--requests" => options.requests = value().parse().expect("a number"),
                "--streams" => options.streams = value().parse().expect("a number"),
                "--idle" => options.idle = value().parse().expect("a number"),
                "--rows" => options.rows = Some(value()),
                "--commit" => options.commit = value(),
                _ => {} // cargo passes its own
            }
        }
        options
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).peekable();
    match arguments.peek().map(String::as_str) {
        Some("upstream") => roles::upstream(),
        Some("router") => roles::router(&arguments.nth(1).expect("an upstream's address")),
        _ => measure(&Options::parse(arguments)),
    }
}

fn measure(options: &Options) {
    load::raise_descriptor_limit();
    load::share_one_core();
    let upstream = Proxy::own("upstream", &[]);
    let router = Proxy::own("router", &[&upstream.address.to_string()]);
    let nginx = Proxy::nginx(upstream.address);

    let mut report = Report::new(options);
    report.latency(&upstream, nginx.as_ref(), &router);
    report.streams(&router);
    report.idle(&router);
    report.write_rows();
}

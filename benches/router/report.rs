//! The measurements, printed as they come and kept as JSON lines.

use crate::{
    Options,
    load::{Client, times},
    proxies::Proxy,
};
use serde_json::{Value, json};
use std::{fs::OpenOptions, io::Write, time::Duration};

/// What was measured so far.
pub struct Report<'o> {
    options: &'o Options,
    rows: Vec<Value>,
}

/// One server's rounds.
struct Series<'p> {
    name: &'static str,
    proxy: &'p Proxy,
    client: Client,
    p50: Vec<f64>,
    p99: Vec<f64>,
    cpu: Duration,
}

fn micros(d: Duration) -> f64 {
    d.as_secs_f64() * 1e6
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// The value that so many percent of the sorted times are below.
fn percentile(sorted: &[Duration], percent: usize) -> f64 {
    micros(sorted[(sorted.len() * percent / 100).min(sorted.len() - 1)])
}

impl<'o> Report<'o> {
    /// Nothing yet.
    pub fn new(options: &'o Options) -> Self {
        Self { options, rows: Vec::new() }
    }

    /// One request at a time, in rounds that alternate.
    pub fn latency(&mut self, direct: &Proxy, nginx: Option<&Proxy>, router: &Proxy) {
        let of = |name, proxy: &'_ Proxy| Client::connect(proxy.address, false).map(|client| (name, client));
        let servers = [("direct", Some(direct)), ("nginx", nginx), ("swapserve", Some(router))];
        let mut series: Vec<Series<'_>> = servers
            .into_iter()
            .filter_map(|(name, proxy)| proxy.map(|p| (name, p)))
            .map(|(name, proxy)| {
                let (name, mut client) = of(name, proxy).expect("the server listens");
                times(&mut client, self.options.requests / 4); // warms up
                Series { name, proxy, client, p50: vec![], p99: vec![], cpu: Duration::ZERO }
            })
            .collect();
        for _ in 0..self.options.rounds {
            for one in &mut series {
                let before = one.proxy.cpu();
                let sorted = times(&mut one.client, self.options.requests);
                one.cpu += one.proxy.cpu() - before;
                one.p50.push(percentile(&sorted, 50));
                one.p99.push(percentile(&sorted, 99));
            }
        }

        let (rounds, requests) = (self.options.rounds, self.options.requests);
        println!(
            "one request at a time, {rounds} alternating rounds of {requests}, one core for all; microseconds"
        );
        println!("{:<12}{:>8}{:>8}{:>12}{:>14}", "", "p50", "p99", "added p50", "CPU/request");
        let base = median(&series[0].p50);
        let mut added = std::collections::BTreeMap::new();
        for one in &series {
            let (p50, p99) = (median(&one.p50), median(&one.p99));
            let cpu = micros(one.cpu) / (rounds * requests) as f64;
            println!("{:<12}{p50:>8.1}{p99:>8.1}{:>12.1}{cpu:>14.1}", one.name, p50 - base);
            added.insert(one.name, p50 - base);
            self.row(json!({
                "what": "latency", "server": one.name, "rounds": rounds, "requests": requests,
                "p50_us": p50, "p99_us": p99, "added_p50_us": p50 - base, "cpu_us": cpu,
            }));
        }
        if let Some(nginx) = added.get("nginx") {
            println!("swapserve adds {:.2} times what nginx adds", added["swapserve"] / nginx);
        }
    }

    /// Streams that are all open at once.
    pub fn streams(&mut self, router: &Proxy) {
        let before = router.memory();
        let mut clients: Vec<Client> = (0..self.options.streams)
            .map(|_| Client::connect(router.address, true).expect("the router listens"))
            .collect();
        for client in &mut clients {
            client.begin().expect("the router reads");
        }
        for client in &mut clients {
            client.first_event().expect("a first event");
        }
        self.held("streams", clients.len(), before, router);
        drop(clients);
    }

    /// Connections that never ask.
    pub fn idle(&mut self, router: &Proxy) {
        let before = router.memory();
        let clients: Vec<std::net::TcpStream> = (0..self.options.idle)
            .map(|_| std::net::TcpStream::connect(router.address).expect("the router listens"))
            .collect();
        self.held("idle connections", clients.len(), before, router);
    }

    fn held(&mut self, what: &str, count: usize, before: u64, router: &Proxy) {
        let mut client = Client::connect(router.address, false).expect("the router listens");
        let sorted = times(&mut client, self.options.requests);
        let (p50, p99) = (percentile(&sorted, 50), percentile(&sorted, 99));
        let each = router.memory().saturating_sub(before) as f64 / count.max(1) as f64;
        println!(
            "{count} {what} held: {:.1} KiB each, {:.1} MiB in all; another client's p50 {p50:.1}, p99 {p99:.1}",
            each / 1024.0,
            router.memory() as f64 / f64::from(1 << 20)
        );
        self.row(json!({
            "what": what, "count": count, "bytes_each": each, "p50_us": p50, "p99_us": p99,
        }));
    }

    fn row(&mut self, mut row: Value) {
        row["commit"] = json!(self.options.commit);
        self.rows.push(row);
    }

    /// Appends what was measured to the file that was asked for.
    pub fn write_rows(&self) {
        let Some(path) = &self.options.rows else { return };
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).expect("the rows can be written");
        for row in &self.rows {
            writeln!(file, "{row}").expect("the rows can be written");
        }
    }
}

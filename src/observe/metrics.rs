//! What the router counts, in Prometheus text format: base units, one series a model.
//!
//! | metric | labels | what it is |
//! | --- | --- | --- |
//! | `swapserve_requests_total` | `model`, `code` | answers begun, by status; `model` is empty where none was named |
//! | `swapserve_request_queue_seconds` | `model` | arrival to dispatch |
//! | `swapserve_request_swap_seconds` | `model` | the part of it in which the model was swapped in |
//! | `swapserve_request_first_byte_seconds` | `model` | arrival to the answer's head |
//! | `swapserve_stream_seconds` | `model` | the answer's head to its last byte |
//! | `swapserve_streams_failed_total` | `model` | answers that broke off after their head |
//! | `swapserve_response_bytes_total` | `model` | bytes of answers |
//! | `swapserve_open_streams` | `model` | answers on their way |
//! | `swapserve_open_connections` | | clients' connections |
//!
//! Nothing here asks an engine: a swapped-out engine is never woken or probed for a metric.

use http::StatusCode;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};
use std::{
    rc::Rc,
    time::{Duration, Instant},
};

/// Upper bounds of the histograms' buckets, seconds: from a warm token to a cold start.
const BUCKETS: [f64; 14] =
    [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 600.0];

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PerModel {
    model: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct PerAnswer {
    model: String,
    code: u16,
}

type Histograms = Family<PerModel, Histogram, fn() -> Histogram>;

fn histogram() -> Histogram {
    Histogram::new(BUCKETS)
}

/// Everything the router counts.
pub struct RouterMetrics {
    registry: Registry,
    requests: Family<PerAnswer, Counter>,
    queue: Histograms,
    swap: Histograms,
    first_byte: Histograms,
    stream: Histograms,
    failed: Family<PerModel, Counter>,
    bytes: Family<PerModel, Counter>,
    open: Family<PerModel, Gauge>,
    connections: Gauge,
}

impl Default for RouterMetrics {
    fn default() -> Self {
        let histograms = || Histograms::new_with_constructor(histogram);
        let mut metrics = Self {
            registry: Registry::with_prefix("swapserve"),
            requests: Family::default(),
            queue: histograms(),
            swap: histograms(),
            first_byte: histograms(),
            stream: histograms(),
            failed: Family::default(),
            bytes: Family::default(),
            open: Family::default(),
            connections: Gauge::default(),
        };
        metrics.register();
        metrics
    }
}

impl RouterMetrics {
    fn register(&mut self) {
        let Self { registry: r, requests, queue, swap, first_byte, stream, failed, bytes, open, connections } =
            self;
        r.register("requests", "Answers begun, by status", requests.clone());
        for (name, help, family) in [
            ("request_queue", "Time from arrival to dispatch", &*queue),
            ("request_swap", "Part of the queue time in which the model was swapped in", &*swap),
            ("request_first_byte", "Time from arrival to the answer's head", &*first_byte),
            ("stream", "Time from the answer's head to its last byte", &*stream),
        ] {
            r.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        r.register("streams_failed", "Answers that broke off after their head", failed.clone());
        r.register_with_unit("response", "Bytes of answers", Unit::Bytes, bytes.clone());
        r.register("open_streams", "Answers on their way", open.clone());
        r.register("open_connections", "Connections of clients", connections.clone());
    }

    /// The series of one model; looked up once, not on each request.
    pub fn model(&self, name: &str) -> Rc<ModelMetrics> {
        let label = PerModel { model: name.to_owned() };
        Rc::new(ModelMetrics {
            ok: self.answers(name, StatusCode::OK),
            queue: self.queue.get_or_create(&label).clone(),
            swap: self.swap.get_or_create(&label).clone(),
            first_byte: self.first_byte.get_or_create(&label).clone(),
            stream: self.stream.get_or_create(&label).clone(),
            failed: self.failed.get_or_create(&label).clone(),
            bytes: self.bytes.get_or_create(&label).clone(),
            open: self.open.get_or_create(&label).clone(),
            name: label.model,
        })
    }

    fn answers(&self, model: &str, code: StatusCode) -> Counter {
        self.requests.get_or_create(&PerAnswer { model: model.to_owned(), code: code.as_u16() }).clone()
    }

    /// A client has connected; it is counted until the guard is dropped.
    pub fn connection(&self) -> OpenConnection {
        self.connections.inc();
        OpenConnection(self.connections.clone())
    }

    /// All of it as text, without the closing `# EOF`.
    pub fn encode(&self) -> String {
        let mut out = String::new();
        text::encode_registry(&mut out, &self.registry).expect("a String takes all that is written to it");
        out
    }
}

/// One model's series.
pub struct ModelMetrics {
    name: String,
    ok: Counter,
    queue: Histogram,
    swap: Histogram,
    first_byte: Histogram,
    stream: Histogram,
    failed: Counter,
    bytes: Counter,
    open: Gauge,
}

/// An open connection of a client.
pub struct OpenConnection(Gauge);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// A request from its arrival until its answer begins.
pub struct Arrival {
    at: Instant,
    model: Option<Rc<ModelMetrics>>,
}

impl Arrival {
    /// A request that has just come.
    pub fn now() -> Self {
        Self { at: Instant::now(), model: None }
    }

    /// It names this model, or one that does not exist.
    pub fn model(&mut self, model: Option<Rc<ModelMetrics>>) {
        self.model = model;
    }

    /// It has its lease.
    pub fn dispatched(&self, waited: Duration, swapping: Duration) {
        if let Some(model) = &self.model {
            model.queue.observe(waited.as_secs_f64());
            model.swap.observe(swapping.as_secs_f64());
        }
    }

    /// Its answer begins, as a stream.
    pub fn first_byte(&self) -> OpenStream {
        let at = Instant::now();
        if let Some(model) = &self.model {
            model.first_byte.observe((at - self.at).as_secs_f64());
            model.open.inc();
        }
        OpenStream { at, model: self.model.clone() }
    }

    /// Its answer begins, with this status.
    pub fn answered(&self, metrics: &RouterMetrics, code: StatusCode) {
        match &self.model {
            Some(model) if code == StatusCode::OK => model.ok.inc(),
            Some(model) => metrics.answers(&model.name, code).inc(),
            None => metrics.answers("", code).inc(),
        };
    }
}

/// An answer on its way; ends when dropped.
pub struct OpenStream {
    at: Instant,
    model: Option<Rc<ModelMetrics>>,
}

impl OpenStream {
    /// So many more bytes of it were sent.
    pub fn sent(&self, bytes: usize) {
        if let Some(model) = &self.model {
            model.bytes.inc_by(bytes as u64);
        }
    }

    /// It broke off.
    pub fn failed(&self) {
        if let Some(model) = &self.model {
            model.failed.inc();
        }
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        if let Some(model) = &self.model {
            model.open.dec();
            model.stream.observe(self.at.elapsed().as_secs_f64());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_request_shows_in_every_series_of_its_model() {
        let metrics = RouterMetrics::default();
        let mut arrival = Arrival::now();
        arrival.model(Some(metrics.model("chat")));
        arrival.dispatched(Duration::from_millis(300), Duration::from_millis(200));
        let stream = arrival.first_byte();
        arrival.answered(&metrics, StatusCode::OK);
        stream.sent(42);
        let text = metrics.encode();
        for line in [
            r#"swapserve_requests_total{model="chat",code="200"} 1"#,
            r#"swapserve_request_queue_seconds_sum{model="chat"} 0.3"#,
            r#"swapserve_request_swap_seconds_bucket{le="0.25",model="chat"} 1"#,
            r#"swapserve_response_bytes_total{model="chat"} 42"#,
            r#"swapserve_open_streams{model="chat"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        drop(stream);
        assert!(metrics.encode().contains(r#"swapserve_open_streams{model="chat"} 0"#));
    }
}

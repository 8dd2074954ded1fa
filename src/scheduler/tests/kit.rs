//! Builders and a small world for the tests: models on GPUs of 80 GiB, engines that answer when told to.

use super::super::*;
use crate::units::{Bytes, Footprint, MechanismKind, ModelId, RequestId};
use std::{fmt::Write, time::Duration};

/// A model of `gib` on GPU 0; its state while out is `gib` of host memory.
pub(super) fn model(name: &str, gib: u64) -> ModelBuilder {
    let resident = Footprint::on_gpus(&[0], Bytes::gib(gib));
    ModelBuilder(ModelSpec {
        name: name.into(),
        pin: false,
        preload: false,
        gpus: [0].into_iter().collect(),
        out: Footprint::default().with_host(Bytes::gib(gib)),
        starting: resident.clone().with_host(Bytes::gib(gib)),
        resident,
        keeps_streams: false,
        idle_ttl: None,
        restart: RestartPolicy::default(),
        measures: false,
        weights: Bytes(0),
        preparation: None,
    })
}

/// Builds a [`ModelSpec`].
pub(super) struct ModelBuilder(ModelSpec);

impl ModelBuilder {
    /// A CPU engine of `gib`, whose processes are stopped from running while it is out.
    pub(super) fn on_cpu(name: &str, gib: u64) -> Self {
        let host = Footprint::default().with_host(Bytes::gib(gib));
        let ModelBuilder(spec) = model(name, 0);
        let running = host.clone().with_slots(1);
        ModelBuilder(ModelSpec {
            gpus: Default::default(),
            out: host,
            starting: running.clone(),
            resident: running,
            ..spec
        })
    }

    /// Parked while it is out, in a pool; on the host its processes take `own` GiB all the time.
    pub(super) fn parked(mut self, own: u64) -> Self {
        let pool = self.0.out.host;
        self.0.resident = self.0.resident.with_host(Bytes::gib(own));
        self.0.out = Footprint::default().with_pool(pool).with_host(Bytes::gib(own));
        self.0.starting = self.0.resident.max(&self.0.out);
        self
    }

    pub(super) fn on(mut self, gpus: &[usize]) -> Self {
        let each = self.0.resident.on_gpu(self.0.gpus[0]);
        self.0.resident = Footprint::on_gpus(gpus, each);
        self.0.starting = self.0.resident.clone().with_host(self.0.out.host);
        self.0.gpus = gpus.iter().copied().collect();
        self
    }

    pub(super) fn pinned(mut self) -> Self {
        self.0.pin = true;
        self
    }

    pub(super) fn preloaded(mut self) -> Self {
        self.0.preload = true;
        self
    }

    pub(super) fn keeping_streams(mut self) -> Self {
        self.0.keeps_streams = true;
        self
    }

    /// It sizes itself by what its GPUs have free.
    pub(super) fn measuring(mut self) -> Self {
        self.0.measures = true;
        self
    }

    /// It reads so many GiB when it starts.
    pub(super) fn weighing(mut self, gib: u64) -> Self {
        self.0.weights = Bytes::gib(gib);
        self
    }

    /// It can be launched ahead of its turn, and takes two GiB meanwhile, for a minute at most.
    pub(super) fn preparable(mut self) -> Self {
        self.0.preparation = Some(Preparation { host: Bytes::gib(2), longest: Duration::from_secs(60) });
        self
    }

    pub(super) fn idle_ttl(mut self, seconds: u64) -> Self {
        self.0.idle_ttl = Some(Duration::from_secs(seconds));
        self
    }

    pub(super) fn build(self) -> ModelSpec {
        self.0
    }
}

pub(super) fn bounds() -> Bounds {
    Bounds {
        queue_limit: 4,
        max_wait: Duration::from_secs(300),
        min_resident: Duration::from_secs(5),
        patience: Duration::from_secs(20),
        drain_limit: Duration::from_secs(30),
        end_margin: Duration::from_secs(60),
    }
}

/// `gpus` of 80 GiB each, and 400 GiB of host memory.
pub(super) fn capacity(gpus: usize) -> Footprint {
    let all: Vec<usize> = (0..gpus).collect();
    Footprint::on_gpus(&all, Bytes::gib(80)).with_host(Bytes::gib(400)).with_slots(2)
}

pub(super) fn setup(models: Vec<ModelSpec>, gpus: usize) -> Setup {
    Setup { models, capacity: capacity(gpus), ceiling: Footprint::default(), bounds: bounds() }
}

/// A scheduler with a clock and a transcript. Every step is followed by the check of all invariants.
pub(super) struct Desk {
    pub(super) scheduler: Scheduler,
    pub(super) now: Moment,
    pub(super) effects: Vec<Effect>,
    /// Engines that keep their streams are parked, and so can go out in part.
    pub(super) parks: bool,
    next_request: u64,
}

impl Desk {
    /// Nothing started; one GPU.
    pub(super) fn new(models: Vec<ModelBuilder>) -> Self {
        Self::with_gpus(1, models)
    }

    pub(super) fn with_gpus(gpus: usize, models: Vec<ModelBuilder>) -> Self {
        let models = models.into_iter().map(ModelBuilder::build).collect();
        let scheduler = Scheduler::new(setup(models, gpus));
        Desk { scheduler, now: Moment::ZERO, effects: Vec::new(), parks: false, next_request: 0 }
    }

    /// Booted: every engine was started and answered at once; whoever did not fit is out.
    pub(super) fn booted(models: Vec<ModelBuilder>) -> Self {
        let mut desk = Self::new(models);
        desk.boot();
        desk
    }

    pub(super) fn boot(&mut self) {
        self.tell(Event::Boot);
        self.run_moves();
        self.transcript();
    }

    /// Reports every move that was asked for as done, until none is left.
    pub(super) fn run_moves(&mut self) {
        let mut seen = 0;
        while let Some(effect) = self.effects.get(seen).cloned() {
            seen += 1;
            if let Some(event) = self.done(&effect) {
                self.tell(event);
            }
        }
    }

    /// The report that `effect` was carried out.
    pub(super) fn done(&self, effect: &Effect) -> Option<Event> {
        match *effect {
            Effect::Warm { model } => Some(Event::Warmed { model }),
            Effect::Prepare { model } => Some(Event::Imported { model }),
            Effect::Start { model } | Effect::Proceed { model } => {
                Some(Event::Started { model, measure: self.measure(model) })
            }
            Effect::SwapIn { model, .. } => Some(Event::SwappedIn { model, measure: self.measure(model) }),
            Effect::SwapOut { model, free, .. } => {
                let mut measure = self.measure(model);
                if let Some(free) = free {
                    let whole = measure.out;
                    let gpu = self.scheduler.model(model).held.gpu.iter().enumerate();
                    let gpu = gpu.map(|(at, held)| held.saturating_sub(free).max(whole.on_gpu(at))).collect();
                    measure.out = Footprint { gpu, ..whole };
                    measure.partial = true;
                }
                Some(Event::SwappedOut { model, measure })
            }
            Effect::Stop { model } => Some(Event::Stopped { model }),
            _ => None,
        }
    }

    /// A measure that says what was known before; moves take a second.
    pub(super) fn measure(&self, model: ModelId) -> SwapMeasure {
        let view = self.scheduler.view(model);
        let took = Duration::from_secs(1);
        let keeps = self.scheduler.model(model).keeps_streams;
        let mechanism = Some(match (keeps, self.parks) {
            (true, true) => MechanismKind::Park,
            (true, false) => MechanismKind::Checkpoint,
            (false, _) => MechanismKind::Sleep,
        });
        SwapMeasure { mechanism, resident: view.resident, out: view.out, took, ..SwapMeasure::default() }
    }

    pub(super) fn tell(&mut self, event: Event) {
        self.scheduler.step(self.now, event, &mut self.effects);
        self.scheduler.check_invariants().unwrap_or_else(|broken| panic!("at {:?}: {broken}", self.now));
    }

    /// Lets `seconds` pass, waking the scheduler whenever it asked for it.
    pub(super) fn pass(&mut self, seconds: u64) {
        let until = self.now + Duration::from_secs(seconds);
        while let Some(wake) = self.scheduler.next_wake().filter(|wake| *wake <= until) {
            assert!(wake > self.now, "a wake must lie ahead");
            self.now = wake;
            self.tell(Event::Wake);
        }
        self.now = until;
    }

    pub(super) fn id(&self, name: &str) -> ModelId {
        let at =
            self.scheduler.models.iter().position(|m| &*m.spec.name == name).expect("a model of the test");
        ModelId(at as u32)
    }

    /// A request arrives; its number.
    pub(super) fn request(&mut self, name: &str) -> RequestId {
        let request = RequestId(self.next_request);
        self.next_request += 1;
        self.tell(Event::Arrived { request, model: self.id(name) });
        request
    }

    pub(super) fn release(&mut self, request: RequestId) {
        self.tell(Event::Released { request });
    }

    pub(super) fn cancel(&mut self, request: RequestId) {
        self.tell(Event::Cancelled { request });
    }

    /// The move that was asked of `name` is done.
    pub(super) fn finish(&mut self, name: &str) {
        let model = self.id(name);
        let measure = self.measure(model);
        self.tell(match self.scheduler.state(model) {
            State::Starting => Event::Started { model, measure },
            State::SwappingIn => Event::SwappedIn { model, measure },
            State::SwappingOut => Event::SwappedOut { model, measure },
            State::Stopping => Event::Stopped { model },
            state => panic!("{name} is {state}"),
        });
    }

    pub(super) fn fault(retry: bool) -> EngineFault {
        EngineFault { detail: "it broke".to_owned(), retry }
    }

    pub(super) fn state(&self, name: &str) -> State {
        self.scheduler.state(self.id(name))
    }

    pub(super) fn reason(&self, name: &str) -> Reason {
        self.scheduler.explain(self.id(name), self.now).reason
    }

    /// What was asked for since the last call, one line each, with names.
    pub(super) fn transcript(&mut self) -> String {
        let mut text = String::new();
        for effect in self.effects.drain(..) {
            let name = |id: ModelId| self.scheduler.model(id).spec.name.clone();
            let line = match effect {
                Effect::Warm { model } => format!("warm {}", name(model)),
                Effect::Prepare { model } => format!("prepare {}", name(model)),
                Effect::Proceed { model } => format!("proceed {}", name(model)),
                Effect::Start { model } => format!("start {}", name(model)),
                Effect::Stop { model } => format!("stop {}", name(model)),
                Effect::SwapOut { model, in_flight, free } => {
                    let with = if in_flight > 0 { format!(" with {in_flight}") } else { String::new() };
                    let part = free.map(|bytes| format!(", {bytes} of it")).unwrap_or_default();
                    format!("out {}{with}{part}", name(model))
                }
                Effect::SwapIn { model, early: None } => format!("in {}", name(model)),
                Effect::SwapIn { model, early: Some(early) } => {
                    let from: Vec<String> = early.from.iter().map(|id| name(*id).to_string()).collect();
                    let room: Vec<String> = early.room.iter().map(Bytes::to_string).collect();
                    format!("in {} from {}, {} at once", name(model), from.join("+"), room.join("+"))
                }
                Effect::Dispatch { request, waited, swapping, .. } => {
                    format!("dispatch {} after {}s ({}s)", request.0, waited.as_secs(), swapping.as_secs())
                }
                Effect::Reject { request, reason } => {
                    let reason = serde_json::to_value(&reason).expect("it serialises");
                    format!("reject {} {}", request.0, reason["reason"].as_str().unwrap_or_default())
                }
                Effect::Answer { ask, result } => {
                    format!("answer {ask} {}", result.map_or_else(|e| e, |()| "ok".into()))
                }
            };
            writeln!(text, "{line}").expect("a string takes everything");
        }
        text.trim_end().to_owned()
    }
}

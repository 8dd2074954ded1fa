//! What one process knows after `cuInit`: its record, its visible GPUs, and the restore thread that answers
//! checkpoint and restore requests of other processes.

use std::sync::OnceLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use software_gpu::MAX_GPUS;
use software_gpu::futex;
use software_gpu::record::{Record, Request, State, now};
use software_gpu::table::Table;

use crate::error::{Error, Outcome};

/// A process that has called `cuInit`.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) table: Table,
    pub(crate) record: &'static Record,
    /// Place on the bus of each CUDA ordinal.
    pub(crate) visible: Vec<usize>,
    pid: u32,
}

static SESSION: OnceLock<Result<Session, Error>> = OnceLock::new();

/// Starts the session, once a process.
pub(crate) fn start() -> Outcome {
    SESSION.get_or_init(Session::begin).as_ref().map(|_| ()).map_err(|&error| error)
}

/// The session of this process. A child forked after `cuInit` has none, as with the real driver.
pub(crate) fn here() -> Result<&'static Session, Error> {
    match SESSION.get() {
        Some(Ok(session)) if session.pid == std::process::id() => Ok(session),
        _ => Err(Error::NOT_INITIALIZED),
    }
}

/// Place on the bus of CUDA device `ordinal`.
pub(crate) fn gpu(ordinal: i32) -> Result<usize, Error> {
    let visible = &here()?.visible;
    usize::try_from(ordinal).ok().and_then(|at| visible.get(at).copied()).ok_or(Error::INVALID_DEVICE)
}

impl Session {
    fn begin() -> Result<Self, Error> {
        let table = Table::from_environment().map_err(|_| Error::NO_DEVICE)?;
        let visible = table.machine().visible(std::env::var("CUDA_VISIBLE_DEVICES").ok().as_deref());
        if visible.is_empty() {
            return Err(Error::NO_DEVICE);
        }
        let pid = std::process::id();
        let record = table.register(pid as i32).ok_or(Error::OUT_OF_MEMORY)?;
        std::thread::Builder::new()
            .name("cuda-restore".to_owned())
            .spawn(move || serve_requests(pid))
            .map_err(|_| Error::OPERATING_SYSTEM)?;
        while record.restore_thread.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        Ok(Self { table, record, visible, pid })
    }
}

/// The restore thread: does to its own process what another one asks.
fn serve_requests(pid: u32) {
    let Ok(table) = Table::from_environment() else { return };
    let Some(record) = table.find(pid as i32) else { return };
    // SAFETY: gettid takes nothing and cannot fail.
    record.restore_thread.store(unsafe { libc::gettid() }, Ordering::SeqCst);
    let mut served = 0;
    loop {
        let asked = record.request.load(Ordering::SeqCst);
        if asked == served {
            futex::wait(&record.request, asked, Duration::from_secs(1));
            continue;
        }
        served = asked;
        let outcome = match Request::from_number(asked) {
            Request::Checkpoint => checkpoint(&table, record),
            Request::Restore => restore(&table, record),
        };
        record.answer.store(outcome.err().map_or(0, |error| error.0) as u32, Ordering::SeqCst);
        futex::wake(&record.answer);
    }
}

fn checkpoint(table: &Table, record: &Record) -> Outcome {
    if record.managed.load(Ordering::SeqCst) > 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    take_time(&record.held, table.machine().out_mib_s);
    let _guard = table.lock();
    let lag = table.machine().nvml_lag_ms;
    for gpu in 0..MAX_GPUS {
        let bytes = record.held[gpu].swap(0, Ordering::SeqCst);
        record.host[gpu].store(bytes, Ordering::SeqCst);
        record.ghost[gpu].store(bytes, Ordering::SeqCst);
    }
    record.ghost_until.store(now() + lag * 1_000_000, Ordering::SeqCst);
    record.set_state(State::Checkpointed);
    Ok(())
}

fn restore(table: &Table, record: &Record) -> Outcome {
    take_time(&record.host, table.machine().in_mib_s);
    let _guard = table.lock();
    let wanted = |gpu: usize| record.host[gpu].load(Ordering::SeqCst);
    // These two leave the process checkpointed for good (seen with driver 580).
    if record.imported.load(Ordering::SeqCst) > 0 {
        return Err(Error::NOT_SUPPORTED);
    }
    if record.ipc.load(Ordering::SeqCst) > 0 {
        return Err(Error::INVALID_VALUE);
    }
    if !(0..table.machine().gpus.len()).all(|gpu| table.free(gpu) >= wanted(gpu)) {
        record.set_state(State::Failed);
        return Err(Error::OUT_OF_MEMORY);
    }
    for gpu in 0..MAX_GPUS {
        let bytes = record.host[gpu].swap(0, Ordering::SeqCst);
        record.held[gpu].store(bytes, Ordering::SeqCst);
    }
    record.set_state(State::Locked);
    Ok(())
}

fn take_time(bytes: &[std::sync::atomic::AtomicU64; MAX_GPUS], mib_s: u64) {
    let total: u64 = bytes.iter().map(|bytes| bytes.load(Ordering::SeqCst)).sum();
    if let Some(micros) =
        (total >> 10).checked_mul(1_000_000 >> 10).and_then(|scaled| scaled.checked_div(mib_s))
    {
        std::thread::sleep(Duration::from_micros(micros));
    }
}

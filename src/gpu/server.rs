//! The gpu server's main: reads calls from its socket, runs each in a thread of its own, writes the answers.
//!
//! It holds no state of its own, so that one that is killed is replaced at no loss but that of the calls under
//! way. It ends when its socket does: it gives the pool's memory back, which has a time limit, and is gone without any other
//! clean-up. A driver call that hangs must not keep it.

use std::io::{BufReader, Write};
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use super::capability::Capability;
use super::driver::{Device, Driver};
use super::launch::SOCKET_VARIABLE;
use super::nvml::{Nvml, without_nvml};
use super::park::server::MemoryServer;
use super::park::setup::{handed_over, has_pool};
use super::protocol::{Answer, Call, Description, Gpu, Numbered, Outcome, Refusal, read_frame, write_frame};

/// The hidden verb: serves calls that arrive on the socket that the daemon handed over, until it is closed. Never
/// returns.
pub fn main() -> ! {
    let Some(socket) = inherited_socket() else {
        eprintln!("gpu-server is started by the daemon, which names its socket in {SOCKET_VARIABLE}");
        std::process::exit(64);
    };
    leave_signals_to_the_daemon();
    // A broken socket ends the server like a closed one: there is nobody left to tell.
    let _ = serve(UnixStream::from(socket));
    // SAFETY: ends the process without running exit handlers, which may wait for a driver call that hangs.
    unsafe { libc::_exit(0) }
}

/// Has signals that say that a job is to end wait for ever: where Slurm sends them to every process of a step, engines are
/// swapped until the daemon has ended them, and it ends this process by its socket or by KILL.
fn leave_signals_to_the_daemon() {
    use nix::sys::signal::{SigSet, Signal};
    let wait = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2];
    // It refuses nothing but a set that is none.
    let _ = wait.into_iter().collect::<SigSet>().thread_block();
}

/// The descriptor that the daemon names, if it is open.
fn inherited_socket() -> Option<OwnedFd> {
    let number: RawFd = std::env::var(SOCKET_VARIABLE).ok()?.parse().ok()?;
    // SAFETY: fcntl only looks whether the number is an open descriptor.
    let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } >= 0;
    // SAFETY: the descriptor is open, and nothing else in this fresh process owns it: the daemon passed it for this.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

fn serve(socket: UnixStream) -> std::io::Result<()> {
    let writer = Arc::new(Mutex::new(socket.try_clone()?));
    let gpus = Arc::new(Gpus::find());
    let early = Arc::clone(&gpus);
    // Why it cannot be started is told to who asks.
    std::thread::Builder::new().name("park start".to_owned()).spawn(move || early.park().is_ok())?;
    let mut reader = BufReader::new(socket);
    while let Some(Numbered { id, body }) = read_frame::<Numbered<Call>>(&mut reader)? {
        let (writer, gpus) = (Arc::clone(&writer), Arc::clone(&gpus));
        std::thread::Builder::new().name("gpu call".to_owned()).spawn(move || {
            let answer = Numbered { id, body: gpus.answer(body) };
            let mut writer = writer.lock().unwrap_or_else(PoisonError::into_inner);
            // If the daemon is gone, the reader sees the end of the stream.
            let _ = write_frame(&mut *writer, &answer).and_then(|()| writer.flush());
        })?;
    }
    if let Some(Ok(park)) = gpus.park.get() {
        park.end();
    }
    Ok(())
}

/// The driver and NVML, each if it is there.
#[derive(Debug)]
struct Gpus {
    driver: Result<Driver, Capability>,
    devices: Vec<Device>,
    nvml: Result<Nvml, Capability>,
    /// Started once, in the background; who asks before it is there waits.
    park: OnceLock<Result<Arc<MemoryServer>, Refusal>>,
}

impl Gpus {
    fn find() -> Self {
        let driver = Driver::load();
        let devices = driver.as_ref().ok().and_then(|driver| driver.devices().ok()).unwrap_or_default();
        let nvml = Nvml::load(&devices);
        Self { driver, devices, nvml, park: OnceLock::new() }
    }

    /// The memory server, if the daemon has handed over a pool.
    fn park(&self) -> Result<&MemoryServer, Refusal> {
        // Once it has started, the pool's descriptor is a mapping.
        if self.park.get().is_none() && !has_pool() {
            return Err(no_pool());
        }
        let start = || {
            self.driver()?;
            let gpus: Vec<_> = self.devices.iter().map(|device| device.pci_bus_id.parse().ok()).collect();
            let handover = handed_over(&gpus).ok_or_else(no_pool)?;
            MemoryServer::start(handover, self.devices.len() as u32)
        };
        self.park.get_or_init(start).as_deref().map_err(Clone::clone)
    }

    fn answer(&self, call: Call) -> Outcome {
        match call {
            Call::Park(call) => self.park()?.answer(call).map(Answer::Park),
            Call::Ping => Ok(Answer::Done),
            Call::Describe => Ok(Answer::Description(Box::new(self.describe()))),
            Call::Lock { pid, timeout_ms } => {
                self.driver()?.lock(pid, Duration::from_millis(u64::from(timeout_ms))).map(|()| Answer::Done)
            }
            Call::Checkpoint { pid } => self.driver()?.checkpoint(pid).map(|()| Answer::Done),
            Call::Restore { pid } => self.driver()?.restore(pid).map(|()| Answer::Done),
            Call::Unlock { pid } => self.driver()?.unlock(pid).map(|()| Answer::Done),
            Call::State { pid } => self.driver()?.state(pid).map(Answer::State),
            Call::RestoreThread { pid } => self.driver()?.restore_thread(pid).map(Answer::Thread),
            Call::Memory { gpu } => self.nvml()?.memory(gpu).map(Answer::Memory),
            Call::Processes => self.nvml()?.processes().map(Answer::Processes),
            Call::AwaitReleased { pids, timeout_ms } => {
                let limit = Duration::from_millis(u64::from(timeout_ms));
                self.nvml()?.await_released(&pids, limit).map(Answer::Processes)
            }
            Call::AwaitFree { gpu, bytes, timeout_ms } => {
                let limit = Duration::from_millis(u64::from(timeout_ms));
                self.nvml()?.await_free(gpu, bytes, limit).map(Answer::Memory)
            }
        }
    }

    fn driver(&self) -> Result<&Driver, Refusal> {
        self.driver.as_ref().map_err(unavailable)
    }

    fn nvml(&self) -> Result<&Nvml, Refusal> {
        self.nvml.as_ref().map_err(unavailable)
    }

    fn describe(&self) -> Description {
        let gpus: Vec<Gpu> = self
            .devices
            .iter()
            .map(|device| {
                self.nvml.as_ref().map_or_else(|_| without_nvml(device), |nvml| nvml.describe(device))
            })
            .collect();
        let mut capabilities = Vec::new();
        match &self.driver {
            Ok(driver) => {
                capabilities.push(Capability::found("cuda", format!("{} GPU(s)", gpus.len())));
                capabilities.push(driver.checkpoint_capability());
            }
            Err(missing) => {
                capabilities.push(missing.clone());
                let reason = format!("no driver: {}", missing.reason);
                capabilities.push(Capability::missing("checkpoint", reason, missing.remedy.clone()));
            }
        }
        capabilities.push(match &self.nvml {
            Ok(nvml) => Capability::found("nvml", nvml.driver_version().unwrap_or_default()),
            Err(missing) => missing.clone(),
        });
        capabilities.push(mps(&self.devices));
        capabilities.push(mig(&gpus));
        Description {
            cuda_version: self.driver.as_ref().map_or(0, Driver::version),
            driver_version: self.nvml.as_ref().ok().and_then(Nvml::driver_version),
            gpus,
            capabilities,
        }
    }
}

/// Asked to park, with no pool to park in.
fn no_pool() -> Refusal {
    Refusal {
        function: "park".to_owned(),
        on: "this node".to_owned(),
        code: 0,
        name: "unavailable".to_owned(),
        text: "no pool was set up".to_owned(),
    }
}

fn unavailable(missing: &Capability) -> Refusal {
    Refusal {
        function: missing.name.clone(),
        on: "this node".to_owned(),
        code: 0,
        name: "unavailable".to_owned(),
        text: missing.reason.clone(),
    }
}

/// The driver's checkpoint does not work under MPS.
fn mps(devices: &[Device]) -> Capability {
    let pipes = std::env::var_os("CUDA_MPS_PIPE_DIRECTORY").unwrap_or_else(|| "/tmp/nvidia-mps".into());
    let control = Path::new(&pipes).join("control");
    if devices.iter().any(|device| device.mps) || control.exists() {
        let reason = format!("MPS runs ({}), and its clients cannot be checkpointed", control.display());
        return Capability::missing(
            "mps",
            reason,
            "ask for a GPU without MPS, or stop it: echo quit | nvidia-cuda-mps-control",
        );
    }
    Capability::found("mps", "not in the way")
}

/// Nor on MIG instances.
fn mig(gpus: &[Gpu]) -> Capability {
    let cut: Vec<_> = gpus.iter().filter(|gpu| gpu.mig).map(|gpu| gpu.ordinal.to_string()).collect();
    if cut.is_empty() {
        return Capability::found("mig", "not in the way");
    }
    let reason =
        format!("GPU {} is cut into MIG instances, whose processes cannot be checkpointed", cut.join(", "));
    Capability::missing("mig", reason, "ask for a whole GPU")
}

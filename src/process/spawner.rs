//! One thread that forks every child.
//!
//! `PR_SET_PDEATHSIG` is sent when the *thread* that forked is gone (prctl(2)), and an async runtime ends
//! its threads when it likes. So children are forked from a thread of their own that runs as long as the
//! process does.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use rustix::process::{Pid, Resource, Rlimit, getppid, set_parent_process_death_signal, setrlimit, setsid};
use tokio::sync::oneshot;

use super::child::{Child, wait};
use super::handle::Handle;
use super::launch::{Group, Launch, Output, Stdin};
use super::limits;
use super::stat::ProcFs;
use super::warden;
use crate::topology::{BindError, Binding};

/// Why a child was not started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A log file could not be opened.
    #[error(
        "cannot open {path} for the output of {program}: {source}; check that its directory exists, is yours and has room"
    )]
    Log {
        /// The program to be.
        program: String,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child was forked, but could not be set up.
    #[error("cannot start {program}: {step} failed: {source}")]
    Setup {
        /// The program to be.
        program: String,
        /// What was being done in the child.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The program could not be executed.
    #[error("cannot execute {program}: {source}; {hint}")]
    Exec {
        /// The program.
        program: String,
        /// What to look at.
        hint: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The child is running but cannot be held, so it was killed.
    #[error("cannot take hold of {program} (pid {pid}): {source}; raise the limit of open files (ulimit -n)")]
    Hold {
        /// The program.
        program: String,
        /// Its pid.
        pid: i32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The thread could not be started, or is gone.
    #[error("the thread that starts processes is not running: {0}")]
    Thread(io::Error),
}

struct Request {
    launch: Launch,
    reply: oneshot::Sender<Result<Handle, SpawnError>>,
}

/// Starts children. Clones share the one thread.
#[derive(Clone, Debug)]
pub struct Spawner {
    requests: mpsc::Sender<Request>,
    warden: Option<PathBuf>,
}

impl Spawner {
    /// Starts the thread. It lives until the process ends, also when every `Spawner` is dropped.
    ///
    /// # Errors
    /// When the kernel gives no thread.
    pub fn start() -> Result<Self, SpawnError> {
        let (requests, inbox) = mpsc::channel::<Request>();
        // The thread holds a sender itself, so that `recv` never ends.
        let kept = requests.clone();
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                while let Ok(request) = inbox.recv() {
                    serve(request);
                }
                drop(kept);
            })
            .map_err(SpawnError::Thread)?;
        Ok(Self { requests, warden: None })
    }

    /// Has guarded children ([`Launch::guarded`]) started under a warden: `program` is this program, which is
    /// `/proc/self/exe` unless a test says otherwise.
    pub fn with_warden(self, program: impl Into<PathBuf>) -> Self {
        Self { warden: Some(program.into()), ..self }
    }

    /// Starts a child. It has been executed when this comes back.
    ///
    /// # Errors
    /// [`SpawnError`], with what was tried and what to look at.
    pub async fn spawn(&self, launch: Launch) -> Result<Child, SpawnError> {
        match &self.warden {
            Some(program) if launch.guarded => warden::start(self, program, launch).await,
            _ => self.fork(launch).await.map(Child::adopt),
        }
    }

    pub(super) async fn fork(&self, launch: Launch) -> Result<Handle, SpawnError> {
        let gone = || SpawnError::Thread(io::Error::from(io::ErrorKind::BrokenPipe));
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request { launch, reply }).map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

fn serve(Request { launch, reply }: Request) {
    if let Err(Ok(handle)) = reply.send(fork(launch)) {
        // Whoever asked has gone away: a child that nobody holds must not run.
        let _ = handle.signal(rustix::process::Signal::KILL);
        wait(handle.id().pid);
    }
}

fn fork(launch: Launch) -> Result<Handle, SpawnError> {
    let program = launch.program.to_string_lossy().into_owned();
    let setup = |step, source| SpawnError::Setup { program: program.clone(), step, source };
    let mut command = Command::new(&launch.program);
    command.args(&launch.args).env_clear().envs(&launch.env);
    if let Some(dir) = &launch.cwd {
        command.current_dir(dir);
    }
    let hint = exec_hint(&launch);
    command.stdin(match launch.stdin {
        Stdin::Null => Stdio::null(),
        Stdin::Inherit => Stdio::inherit(),
        Stdin::From(fd) => fd.into(),
    });
    command.stdout(stdio(launch.stdout, &program)?);
    command.stderr(stdio(launch.stderr, &program)?);
    if launch.group == Group::Group {
        command.process_group(0);
    }
    let (mut told, tell) = io::pipe().map_err(|source| setup("making a pipe", source))?;
    let steps = ChildSteps {
        session: launch.group == Group::Session,
        death_signal: launch.death_signal,
        parent: Pid::from_raw(std::process::id().cast_signed()),
        core: limits::core_limit(launch.core_dumps),
        oom_score_adj: launch.oom_score_adj.map(|score| score.to_string()),
        fds: launch.fds,
        open_files: limits::open_files_of_children(),
        binding: launch.binding,
    };
    // SAFETY: `ChildSteps::run` only makes system calls on memory that was laid out before the fork.
    unsafe {
        command.pre_exec(move || {
            steps.run().map_err(|(step, error)| {
                let _ = (&tell).write(&[step as u8]);
                error
            })
        });
    }
    let child = command.spawn();
    drop(command); // with it goes this process's end of the pipe that `told` reads
    match child {
        Ok(child) => hold(child.id().cast_signed(), program),
        Err(source) => {
            let mut step = [0u8];
            match told.read(&mut step) {
                Ok(1) => Err(setup(Step::name(step[0]), source)),
                _ => Err(exec_error(program, &hint, source)),
            }
        }
    }
}

/// The error of an exec that failed.
pub(super) fn exec_error(program: String, hint: &ExecHint, source: io::Error) -> SpawnError {
    SpawnError::Exec { hint: hint.explain(&source), program, source }
}

/// `std`'s own child object is let go without a wait: reaping is [`Child`]'s, by pid.
fn hold(pid: i32, program: String) -> Result<Handle, SpawnError> {
    let gone = || io::Error::from(io::ErrorKind::NotFound);
    let held = ProcFs::default().stat(pid).ok_or_else(gone).and_then(|stat| Handle::open(stat.id));
    match held {
        Ok(Some(handle)) => Ok(handle),
        failed => {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
            wait(pid);
            let source = failed.err().unwrap_or_else(gone);
            Err(SpawnError::Hold { program, pid, source })
        }
    }
}

fn stdio(output: Output, program: &str) -> Result<Stdio, SpawnError> {
    Ok(match output {
        Output::Null => Stdio::null(),
        Output::Inherit => Stdio::inherit(),
        Output::To(fd) => fd.into(),
        Output::Append(path) => open_log(&path)
            .map_err(|source| SpawnError::Log { program: program.to_owned(), path, source })?
            .into(),
    })
}

fn open_log(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o600).open(path)
}

/// What the child does to itself between fork and exec.
struct ChildSteps {
    session: bool,
    death_signal: Option<rustix::process::Signal>,
    parent: Option<Pid>,
    core: Rlimit,
    oom_score_adj: Option<String>,
    fds: Vec<std::os::fd::OwnedFd>,
    open_files: Option<Rlimit>,
    binding: Option<Binding>,
}

/// One of them, as the byte that the child reports when it fails.
#[derive(Clone, Copy)]
enum Step {
    Session = 1,
    DeathSignal,
    Parent,
    CoreDumps,
    OomScore,
    Files,
    Cores,
    Memory,
    OpenFiles,
}

impl Step {
    fn name(byte: u8) -> &'static str {
        const NAMES: [&str; 9] = [
            "making a session of its own",
            "tying it to this process's life",
            "finding its parent alive",
            "setting its limit on core dumps",
            "setting its out-of-memory score",
            "handing down open files",
            "binding it to its cores",
            "binding its memory to its NUMA nodes",
            "giving it the job's limit on open files",
        ];
        NAMES.get(usize::from(byte).wrapping_sub(1)).copied().unwrap_or("setting it up")
    }
}

impl ChildSteps {
    /// Runs in the forked child: system calls only, no allocation, no lock (signal-safety(7)).
    fn run(&self) -> Result<(), (Step, io::Error)> {
        let at = |step| move |error: rustix::io::Errno| (step, io::Error::from(error));
        unblock_all_signals();
        if self.session {
            setsid().map_err(at(Step::Session))?;
        }
        if let Some(signal) = self.death_signal {
            set_parent_process_death_signal(Some(signal)).map_err(at(Step::DeathSignal))?;
            // Were the parent dead before the line above, the signal would never come.
            if getppid() != self.parent {
                return Err((Step::Parent, io::Error::from_raw_os_error(libc::ESRCH)));
            }
        }
        setrlimit(Resource::Core, self.core).map_err(at(Step::CoreDumps))?;
        if let Some(score) = &self.oom_score_adj {
            write_oom_score(score.as_bytes()).map_err(at(Step::OomScore))?;
        }
        close_inherited_files();
        for fd in &self.fds {
            rustix::io::fcntl_setfd(fd, rustix::io::FdFlags::empty()).map_err(at(Step::Files))?;
        }
        if let Some(limit) = &self.open_files {
            setrlimit(Resource::Nofile, *limit).map_err(at(Step::OpenFiles))?;
        }
        if let Some(binding) = &self.binding {
            binding.apply().map_err(|error| match error {
                BindError::Cores(error) => (Step::Cores, error),
                BindError::Memory(error) => (Step::Memory, error),
            })?;
        }
        Ok(())
    }
}

/// A signal mask goes through fork and exec: what this process blocks, or was started with, is not for the child.
pub(super) fn unblock_all_signals() {
    // SAFETY: an all-zero set is valid storage, which sigemptyset makes empty; the old mask is not asked for.
    unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::pthread_sigmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// Every signal waits its turn, in a helper of the daemon: Slurm's TERM is meant for that one, which ends everything in
/// order.
pub(super) fn block_all_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is valid storage, which sigfillset fills; the old mask is not asked for.
    unsafe {
        let mut all = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
        all
    }
}

/// Files that this process was itself started with, and knows nothing of, go no further: a copy of the step's output in an
/// engine would keep `srun` waiting. A kernel before 5.11 cannot do it, and they are passed on.
fn close_inherited_files() {
    // SAFETY: descriptors are only marked to be closed at exec; nobody's use of them changes.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
}

pub(super) fn write_oom_score(score: &[u8]) -> rustix::io::Result<()> {
    use rustix::fs::{Mode, OFlags};
    let file =
        rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(file, score).map(drop)
}

/// What is needed to say why an exec failed, kept from before the launch is taken apart.
pub(super) struct ExecHint {
    program: PathBuf,
    search: String,
    cwd: Option<PathBuf>,
}

pub(super) fn exec_hint(launch: &Launch) -> ExecHint {
    let search = launch.env.get(std::ffi::OsStr::new("PATH"));
    ExecHint {
        program: PathBuf::from(&launch.program),
        search: search.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
        cwd: launch.cwd.clone(),
    }
}

impl ExecHint {
    fn explain(&self, error: &io::Error) -> String {
        if let Some(dir) = self.cwd.as_ref().filter(|dir| !dir.is_dir()) {
            return format!("its working directory {} is not a directory that can be entered", dir.display());
        }
        let program = self.program.display();
        let is_path = self.program.as_os_str().as_encoded_bytes().contains(&b'/');
        match error.raw_os_error() {
            Some(libc::ENOENT) if !is_path => format!("no {program} in PATH={}", self.search),
            Some(libc::ENOENT) if self.program.exists() => {
                format!("{program} exists, so its interpreter (first line) or loader does not")
            }
            Some(libc::ENOENT) => "no such file".to_owned(),
            Some(libc::EACCES) => {
                format!("check that {program} is a file, is executable (chmod +x) and not on a noexec mount")
            }
            Some(libc::ENOEXEC) => {
                format!("{program} is neither a binary of this machine nor a script with #!")
            }
            Some(libc::E2BIG) => "arguments and environment together are too long".to_owned(),
            Some(libc::EAGAIN) => "the limit of processes is reached (ulimit -u)".to_owned(),
            _ => "nothing of it was run".to_owned(),
        }
    }
}

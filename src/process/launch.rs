//! What a child is given: program, environment, files, session, and what ties it to its parent.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::process::Signal;

use crate::topology::Binding;

/// Where a child reads from.
#[derive(Debug, Default)]
pub enum Stdin {
    /// `/dev/null`.
    #[default]
    Null,
    /// What this process reads from.
    Inherit,
    /// An open file, or one end of a pipe.
    From(OwnedFd),
}

/// Where a child writes to.
#[derive(Debug, Default)]
pub enum Output {
    /// `/dev/null`.
    Null,
    /// Where this process writes to.
    #[default]
    Inherit,
    /// The end of a log file, made with mode 0600 if it is not there.
    Append(PathBuf),
    /// An open file, or one end of a pipe.
    To(OwnedFd),
}

/// The process group and session a child is put in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Group {
    /// This process's own: the terminal's Ctrl-C reaches the child too.
    Inherit,
    /// A process group of its own in this session.
    Group,
    /// A session of its own: no terminal, and no signal that is meant for this process's group.
    #[default]
    Session,
}

/// A child to be: built, then handed to [`Spawner::spawn`](super::Spawner::spawn).
///
/// The environment is exact. It starts empty, and nothing of this process's own reaches the child unless
/// it is put in; the program is looked up in the `PATH` given here.
pub struct Launch {
    pub(super) program: OsString,
    pub(super) args: Vec<OsString>,
    pub(super) env: BTreeMap<OsString, OsString>,
    pub(super) cwd: Option<PathBuf>,
    pub(super) stdin: Stdin,
    pub(super) stdout: Output,
    pub(super) stderr: Output,
    pub(super) group: Group,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) death_signal: Option<Signal>,
    pub(super) core_dumps: bool,
    pub(super) oom_score_adj: Option<i16>,
    pub(super) binding: Option<Binding>,
    pub(super) guarded: bool,
}

impl Launch {
    /// A child that runs `program`, in a session of its own, with no environment, killed when this process dies.
    pub fn new(program: impl Into<OsString>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            env: BTreeMap::new(),
            cwd: None,
            stdin: Stdin::default(),
            stdout: Output::default(),
            stderr: Output::default(),
            group: Group::default(),
            fds: Vec::new(),
            death_signal: Some(Signal::KILL),
            core_dumps: false,
            oom_score_adj: None,
            binding: None,
            guarded: false,
        }
    }

    /// Adds one argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds arguments.
    pub fn args<A: Into<OsString>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Sets one variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.insert(name.into(), value.into());
        self
    }

    /// Sets variables, such as all of this process's own (`std::env::vars_os()`).
    pub fn envs<N: Into<OsString>, V: Into<OsString>>(
        mut self,
        vars: impl IntoIterator<Item = (N, V)>,
    ) -> Self {
        self.env.extend(vars.into_iter().map(|(name, value)| (name.into(), value.into())));
        self
    }

    /// The directory the child starts in; without it, this process's own.
    pub fn cwd(mut self, dir: impl AsRef<Path>) -> Self {
        self.cwd = Some(dir.as_ref().to_owned());
        self
    }

    /// Where it reads from.
    pub fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where its standard output goes.
    pub fn stdout(mut self, stdout: Output) -> Self {
        self.stdout = stdout;
        self
    }

    /// Where its standard error goes.
    pub fn stderr(mut self, stderr: Output) -> Self {
        self.stderr = stderr;
        self
    }

    /// Both outputs to the end of one log file, made with mode 0600 if it is not there.
    pub fn log(self, path: impl AsRef<Path>) -> Self {
        let path = path.as_ref();
        self.stdout(Output::Append(path.to_owned())).stderr(Output::Append(path.to_owned()))
    }

    /// The group or session it is put in.
    pub fn group(mut self, group: Group) -> Self {
        self.group = group;
        self
    }

    /// Lets the child have an open file, under the number that is returned. Tell it that number by an
    /// argument or a variable. In this process the file stays closed-on-exec, so no other child gets it.
    pub fn inherit_fd(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }

    /// What the child is sent when this process dies, `KILL` unless told otherwise; `None` lets it live on.
    /// The kernel forgets it for a set-user-ID program (prctl(2), `PR_SET_PDEATHSIG`).
    pub fn death_signal(mut self, signal: Option<Signal>) -> Self {
        self.death_signal = signal;
        self
    }

    /// Lets the child write core dumps. Off by default: a dump of an engine holds its key, and tens of
    /// gigabytes of weights.
    pub fn core_dumps(mut self, allowed: bool) -> Self {
        self.core_dumps = allowed;
        self
    }

    /// How willing the kernel is to kill the child when the job's memory runs out, −1000 to 1000
    /// (`/proc/PID/oom_score_adj`); only raising it needs no privilege.
    pub fn oom_score_adj(mut self, score: i16) -> Self {
        self.oom_score_adj = Some(score);
        self
    }

    /// Binds the child, and all it starts, to cores and memory. Without one it keeps this process's own.
    pub fn binding(mut self, binding: Option<Binding>) -> Self {
        self.binding = binding;
        self
    }

    /// Puts the child under a warden (see [`warden`](super::warden)), if the spawner has one: then nobody below it is
    /// ever lost, and everybody ends with this process. The warden is in the child's session and group, or, where the
    /// child has its own, in another of its own.
    pub fn guarded(mut self) -> Self {
        self.guarded = true;
        self
    }

    /// The program as it was given.
    pub fn program(&self) -> &OsStr {
        &self.program
    }
}

/// Shows the command, never the environment: keys are in it.
impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Launch")
            .field("program", &self.program)
            .field("args", &self.args)
            .field("cwd", &self.cwd)
            .field("group", &self.group)
            .finish_non_exhaustive()
    }
}

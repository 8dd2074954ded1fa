//! Starts the gpu server with its end of a socket pair.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// Descriptor at which the gpu server finds its socket.
pub const SOCKET: i32 = 3;

/// How the gpu server is started.
#[derive(Debug, Clone)]
pub struct ServerCommand {
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments: the hidden verb.
    pub arguments: Vec<OsString>,
    /// Variables set on top of this process's own.
    pub environment: Vec<(OsString, OsString)>,
}

impl ServerCommand {
    /// This program's own hidden verb.
    ///
    /// # Errors
    /// If `/proc/self/exe` cannot be read.
    pub fn own() -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            arguments: vec!["gpu-server".into()],
            environment: Vec::new(),
        })
    }

    /// Starts a gpu server; the daemon's end of its socket. The child dies with the thread that calls this
    /// (`PR_SET_PDEATHSIG`), and ends by itself when the socket is closed.
    ///
    /// # Errors
    /// If the socket pair or the process cannot be made.
    pub fn start(&self) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        let theirs = OwnedFd::from(theirs);
        let number = theirs.as_raw_fd();
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        // SAFETY: between fork and exec only async-signal-safe calls are made, on integers captured by value.
        unsafe { command.pre_exec(move || hand_over(number)) };
        let child = command.spawn()?;
        ours.set_nonblocking(true)?;
        Ok((child, ours))
    }
}

/// In the child: the socket at [`SOCKET`], open across exec.
fn hand_over(number: i32) -> io::Result<()> {
    // SAFETY: dup2 and fcntl act on descriptors of this child alone; prctl takes a signal number.
    let failed = unsafe {
        let moved =
            if number == SOCKET { libc::fcntl(SOCKET, libc::F_SETFD, 0) } else { libc::dup2(number, SOCKET) };
        moved < 0 || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(()) }
}

//! Starts the gpu server with its end of a socket pair.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::park::setup::ParkSetup;
use crate::process::{Child, Launch, Output, Spawner};

/// Variable that tells the gpu server the number of its socket's descriptor.
pub const SOCKET_VARIABLE: &str = "SWAPSERVE_GPU_SOCKET";

/// The hidden verb of this program that is the gpu server.
pub const SERVER_VERB: &str = "gpu-server";

/// How the gpu server is started.
#[derive(Debug, Clone)]
pub struct ServerCommand {
    /// The program: this one.
    pub program: PathBuf,
    /// Its arguments: the hidden verb.
    pub arguments: Vec<OsString>,
    /// Variables set on top of this process's own.
    pub environment: Vec<(OsString, OsString)>,
    /// The pool to park engines in, if there is to be one.
    pub park: Option<ParkSetup>,
}

impl ServerCommand {
    /// This program's own hidden verb.
    ///
    /// # Errors
    /// If `/proc/self/exe` cannot be read.
    pub fn own() -> io::Result<Self> {
        Ok(Self {
            program: std::env::current_exe()?,
            arguments: vec![SERVER_VERB.into()],
            environment: Vec::new(),
            park: None,
        })
    }

    /// Starts a gpu server; the daemon's end of its socket. The child is killed when the daemon dies, and ends by
    /// itself when the socket is closed.
    ///
    /// # Errors
    /// If the socket pair or the process cannot be made.
    pub async fn start(&self, spawner: &Spawner) -> io::Result<(Child, UnixStream)> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut launch = Launch::new(&self.program)
            .args(&self.arguments)
            .envs(std::env::vars_os())
            .envs(self.environment.iter().cloned())
            .stdout(Output::Null);
        let number = launch.inherit_fd(OwnedFd::from(theirs));
        if let Some(park) = &self.park {
            let handed = park.hand_over(&mut launch)?;
            launch = launch.envs(handed);
        }
        let child = spawner.spawn(launch.env(SOCKET_VARIABLE, number.to_string())).await;
        Ok((child.map_err(io::Error::other)?, ours))
    }
}

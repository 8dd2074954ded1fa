//! Where clients connect: TCP and a Unix socket at once.

use super::socket::Socket;
use nix::sys::resource::{Resource, getrlimit};
use std::{
    cell::Cell,
    future::{pending, poll_fn},
    io,
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    task::Poll,
    time::Duration,
};
use tokio::net::{TcpListener, TcpStream, UnixListener};

/// After a failed accept (out of descriptors, say) none is tried for this long: clients wait in the kernel's queue.
const PAUSE: Duration = Duration::from_millis(50);

/// Descriptors left for everything but clients and what is forwarded for them: logs, engines' pipes, the daemon.
const RESERVED: u64 = 128;

/// How many clients this process has descriptors for, each with a connection to an engine (`RLIMIT_NOFILE`).
pub fn bearable_connections() -> u32 {
    let soft = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    u32::try_from(soft.saturating_sub(RESERVED) / 2).unwrap_or(u32::MAX).max(16)
}

/// Bound sockets, before anything is served. The Unix socket's file is removed on drop.
#[derive(Default)]
pub struct Listeners {
    tcp: Vec<TcpListener>,
    unix: Option<(UnixListener, PathBuf)>,
    /// Whether the last accept failed, so that a lasting failure is logged once.
    failing: Cell<bool>,
}

impl Listeners {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Binds a TCP address; port 0 lets the kernel choose. Gives the address it got.
    ///
    /// # Errors
    /// What `bind` says: `AddrInUse` where the port is taken.
    pub async fn tcp(&mut self, address: SocketAddr) -> io::Result<SocketAddr> {
        let listener = TcpListener::bind(address).await?;
        let bound = listener.local_addr()?;
        self.tcp.push(listener);
        Ok(bound)
    }

    /// Binds a Unix socket that only this user can connect to (mode 0600, in a directory that should be 0700).
    ///
    /// # Errors
    /// What `bind` says: `AddrInUse` where the file exists.
    pub fn unix(&mut self, path: &Path) -> io::Result<()> {
        let listener = UnixListener::bind(path)?;
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o600))?;
        self.unix = Some((listener, path.to_owned()));
        Ok(())
    }

    /// The next client.
    pub async fn accept(&self) -> Socket {
        loop {
            let accepted = poll_fn(|cx| {
                for listener in &self.tcp {
                    if let Poll::Ready(accepted) = listener.poll_accept(cx) {
                        return Poll::Ready(accepted.map(|(stream, _)| {
                            keep_alive(&stream);
                            Socket::tcp(stream)
                        }));
                    }
                }
                match &self.unix {
                    Some((listener, _)) => listener
                        .poll_accept(cx)
                        .map(|accepted| accepted.map(|(stream, _)| Socket::Unix(stream))),
                    None => Poll::Pending,
                }
            });
            if self.tcp.is_empty() && self.unix.is_none() {
                return pending().await;
            }
            match accepted.await {
                Ok(socket) => {
                    self.failing.set(false);
                    return socket;
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(e) => {
                    if !self.failing.replace(true) {
                        tracing::warn!(error = %e, "clients can't be accepted; trying again until they can");
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
    }
}

/// A client's machine that is gone says nothing: without this, one that waits for its answer is waited for, too.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let (idle, every) = (Duration::from_secs(60), Duration::from_secs(15));
    // What is refused leaves the kernel's own two hours.
    let _ = sockopt::set_socket_keepalive(stream, true)
        .and_then(|()| sockopt::set_tcp_keepidle(stream, idle))
        .and_then(|()| sockopt::set_tcp_keepintvl(stream, every))
        .and_then(|()| sockopt::set_tcp_keepcnt(stream, 4));
}

impl Drop for Listeners {
    fn drop(&mut self) {
        if let Some((_, path)) = &self.unix {
            // Already gone with its directory, or not ours to complain about at the end.
            let _ = std::fs::remove_file(path);
        }
    }
}

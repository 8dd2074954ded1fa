//! A process held by pidfd, so that a signal can never reach a stranger that got its number.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::stat::{ProcFs, ProcId};

/// How often an old kernel without pidfds is asked whether a process is still there.
const POLL_WITHOUT_PIDFD: Duration = Duration::from_millis(20);

/// A hold on one process, child or not.
///
/// With pidfd_open(2) (Linux 5.3) signals go to exactly this process and its exit can be awaited. On an
/// older kernel the start time is compared before each signal instead, and the exit is polled for.
#[derive(Debug)]
pub struct Handle {
    id: ProcId,
    pidfd: Option<OwnedFd>,
}

impl Handle {
    /// Takes hold of the process; `None` if it is gone, or the number is another's by now.
    ///
    /// # Errors
    /// When the kernel refuses a pidfd for another reason than having none, such as too many open files.
    pub fn open(id: ProcId) -> io::Result<Option<Self>> {
        let Some(pid) = Pid::from_raw(id.pid) else { return Ok(None) };
        let pidfd = match pidfd_open(pid, PidfdFlags::NONBLOCK) {
            Ok(fd) => Some(fd),
            Err(Errno::SRCH) => return Ok(None),
            // NONBLOCK came with Linux 5.10; this room never waits through the descriptor, so it is not missed.
            Err(Errno::INVAL) => match pidfd_open(pid, PidfdFlags::empty()) {
                Ok(fd) => Some(fd),
                Err(Errno::SRCH) => return Ok(None),
                Err(error) => return Err(error.into()),
            },
            Err(Errno::NOSYS) => None,
            Err(error) => return Err(error.into()),
        };
        // The descriptor now pins the process; only if the number is still the same one's is it ours.
        let same = ProcFs::default().same(id).is_some();
        Ok(same.then_some(Self { id, pidfd }))
    }

    /// Who is held.
    pub fn id(&self) -> ProcId {
        self.id
    }

    /// Sends a signal; `Ok(false)` if the process is gone.
    ///
    /// # Errors
    /// `EPERM` when the process became another user's.
    pub fn signal(&self, signal: Signal) -> io::Result<bool> {
        let sent = match (&self.pidfd, Pid::from_raw(self.id.pid)) {
            (Some(fd), _) => pidfd_send_signal(fd, signal),
            (None, Some(pid)) if ProcFs::default().same(self.id).is_some() => kill_process(pid, signal),
            (None, _) => return Ok(false),
        };
        match sent {
            Ok(()) => Ok(true),
            Err(Errno::SRCH) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Comes back when the process has exited. It may still be a zombie then, if its parent is slow.
    ///
    /// # Errors
    /// When the descriptor cannot be watched.
    pub async fn exited(&self) -> io::Result<()> {
        match &self.pidfd {
            Some(fd) => {
                // SAFETY: the descriptor is borrowed from `self` for as long as the registration lives, so it
                // stays open and the same.
                let fd = unsafe { AsyncFd::register_with_interest(fd.as_fd(), Interest::READABLE) }?;
                fd.readable().await?.retain_ready();
            }
            None => {
                while ProcFs::default().same(self.id).is_some_and(|stat| !stat.is_dead()) {
                    tokio::time::sleep(POLL_WITHOUT_PIDFD).await;
                }
            }
        }
        Ok(())
    }
}

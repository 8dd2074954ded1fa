//! The janitor: a process outside Slurm's tree that tidies up after a daemon that was killed with everybody below it.
//!
//! Where Slurm tracks processes by ancestry (`proctrack/linuxproc`, `proctrack/pgid`) it kills a whole step at once, wardens
//! and, if it comes late, the task's epilog included. The janitor is nobody's descendant: it is forked twice before the
//! daemon adopts orphans. It does nothing but wait for the daemon's end, which closes a pipe that nobody else holds; then it
//! tidies up and ends, so it does not outlive the job. Under `proctrack/cgroup` nothing escapes, and none is started.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::spawner::block_all_signals;
use super::stat::{ProcFs, ProcId};

/// The hidden verb: `swapserve janitor PID START`, which name the daemon; its standard input is the pipe.
pub const VERB: &str = "janitor";

/// Between the end of the pipe and the daemon's; only a daemon that hangs in the kernel takes it all.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Starts one for this process; it waits for as long as the returned descriptor is open. To be called before this process
/// adopts orphans.
///
/// # Errors
/// When it cannot be started.
pub fn start_janitor() -> io::Result<OwnedFd> {
    let (waits, held) = io::pipe()?;
    let pid = std::process::id();
    let started = ProcFs::default().stat(pid.cast_signed()).map_or(0, |stat| stat.id.start);
    let status = Command::new("/proc/self/exe")
        .args([VERB, &pid.to_string(), &started.to_string()])
        .stdin(OwnedFd::from(waits))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .current_dir("/")
        .status()?;
    if status.success() { Ok(held.into()) } else { Err(io::Error::other(status.to_string())) }
}

/// Runs as one; `tidy_up` is what is to be done once the daemon is gone. Never returns.
pub fn main(mut args: impl Iterator<Item = OsString>, tidy_up: impl FnOnce()) -> ! {
    let mut number = || args.next()?.into_string().ok()?.parse::<u64>().ok();
    let (Some(pid), Some(start)) = (number().and_then(|pid| i32::try_from(pid).ok()), number()) else {
        std::process::exit(64) // EX_USAGE: a person has called it
    };
    // SAFETY: this process has one thread, so the child's memory is whole. The parent's end makes it an orphan.
    match unsafe { libc::fork() } {
        0 => {}
        -1 => std::process::exit(1),
        _ => std::process::exit(0),
    }
    block_all_signals();
    let _ = rustix::process::setsid();
    let _ = rustix::thread::set_name(c"swapserve-tidy");
    // SAFETY: nothing in this process holds a descriptor above 2. A kernel before 5.9 says ENOSYS; they then stay open.
    unsafe { libc::syscall(libc::SYS_close_range, 3u32, u32::MAX, 0u32) };
    let _ = io::stdin().read(&mut [0]);
    let daemon = ProcId { pid, start };
    let deadline = Instant::now() + PATIENCE;
    while ProcFs::default().same(daemon).is_some_and(|stat| !stat.is_dead()) && Instant::now() < deadline {
        std::thread::sleep(LOOK_AGAIN);
    }
    tidy_up();
    std::process::exit(0)
}

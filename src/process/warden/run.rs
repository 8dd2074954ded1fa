//! The warden's own side: one thread, no runtime, nothing but waiting.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getppid, set_child_subreaper, set_parent_process_death_signal, setsid};

use super::{NAME, Word};
use crate::process::spawner::{block_all_signals, unblock_all_signals, write_oom_score};
use crate::process::{Handle, ProcFs, SharedFiles, Tree};

/// Who has nobody to answer to any more is given this long to end what it guards; only a process that hangs in the
/// kernel needs it all.
const LAST_EFFORT: Duration = Duration::from_secs(30);
/// How often a look is taken meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Runs as a warden; `tidy_up` is what is left to do once the daemon and everybody below are gone. Never returns.
pub fn main(args: impl Iterator<Item = OsString>, tidy_up: impl FnOnce()) -> ! {
    let code = match Orders::parse(args) {
        Some(orders) => guard(orders, tidy_up),
        None => 64, // EX_USAGE: a person has called it
    };
    std::process::exit(code)
}

/// What the daemon wants.
struct Orders {
    parent: Option<Pid>,
    status: File,
    oom_score: Option<String>,
    session: bool,
    command: Command,
}

impl Orders {
    fn parse(mut args: impl Iterator<Item = OsString>) -> Option<Self> {
        let mut word = || args.next()?.into_string().ok();
        let parent = Pid::from_raw(word()?.parse().ok()?);
        let status: i32 = word()?.parse().ok()?;
        let oom_score = Some(word()?).filter(|score| score.parse::<i16>().is_ok());
        let group = word()?;
        (word()? == "--").then_some(())?;
        if status <= 2 {
            return None;
        }
        // SAFETY: the daemon opened this descriptor for this process alone, and nobody else here uses it.
        let status = unsafe { File::from_raw_fd(status) };
        let mut command = Command::new(args.next()?);
        command.args(args);
        if group == "group" {
            command.process_group(0);
        }
        Some(Self { parent, status, oom_score, session: group == "session", command })
    }
}

fn guard(mut orders: Orders, tidy_up: impl FnOnce()) -> i32 {
    let waiting = block_all_signals();
    // The name in `ps`; failing to have one harms nobody.
    let _ = std::ffi::CString::new(NAME).is_ok_and(|name| rustix::thread::set_name(&name).is_ok());
    let mut shared = orders.session.then(SharedFiles::before);
    let ready = rustix::io::fcntl_setfd(&orders.status, rustix::io::FdFlags::CLOEXEC)
        .and_then(|()| set_child_subreaper(Some(rustix::process::getpid())));
    let engine = match ready.map_err(io::Error::from).and_then(|()| start(&mut orders)) {
        Ok(engine) => engine,
        Err(error) => {
            tell(&mut orders.status, Word::Failed(error.raw_os_error().unwrap_or(libc::EINVAL)));
            return 1;
        }
    };
    if let Some(stat) = ProcFs::default().stat(engine) {
        tell(&mut orders.status, Word::Running(stat.id));
    }
    drop(orders.command);
    let_go_of_files(orders.status.as_raw_fd());
    loop {
        if getppid() != orders.parent {
            kill_all(&waiting, &mut shared);
            tidy_up();
            return 0;
        }
        match reap(|pid, status| {
            if pid == engine {
                tell(&mut orders.status, Word::Ended(status));
            }
        }) {
            Children::None => return 0,
            Children::Some => wait_for_signal(&waiting, None),
        }
    }
}

/// The daemon may be gone; then the next look at the parent finds out.
fn tell(status: &mut File, word: Word) {
    let _ = status.write_all(word.to_string().as_bytes());
}

fn start(orders: &mut Orders) -> io::Result<i32> {
    let me = rustix::process::getpid();
    let (oom_score, session) = (orders.oom_score.take(), orders.session);
    // SAFETY: this process has one thread, and only system calls are made.
    unsafe {
        orders.command.pre_exec(move || {
            unblock_all_signals();
            if session {
                setsid()?;
            }
            set_parent_process_death_signal(Some(Signal::KILL))?;
            if getppid() != Some(me) {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
            if let Some(score) = &oom_score {
                // An engine that runs without it is better than none.
                let _ = write_oom_score(score.as_bytes());
            }
            Ok(())
        });
    }
    Ok(orders.command.spawn()?.id().cast_signed())
}

/// Closes what was only passed through: a pipe or socket of the engine must end when the engine does.
fn let_go_of_files(keep: i32) {
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for stream in [0, 1, 2] {
            // SAFETY: both descriptors are open, and nothing here holds the old ones as objects.
            unsafe { libc::dup2(null.as_raw_fd(), stream) };
        }
    }
    let (below, above) = (keep.cast_unsigned() - 1, keep.cast_unsigned() + 1);
    // SAFETY: nothing in this process but the status pipe holds a descriptor above 2. A kernel before 5.9 says ENOSYS;
    // the files then stay open until the warden ends.
    unsafe {
        libc::syscall(libc::SYS_close_range, 3u32, below, 0u32);
        libc::syscall(libc::SYS_close_range, above, u32::MAX, 0u32);
    }
}

enum Children {
    None,
    Some,
}

/// Reaps whoever has ended. Everybody here is this process's to reap, so any child will do.
fn reap(mut ended: impl FnMut(i32, i32)) -> Children {
    loop {
        let mut status = 0;
        // SAFETY: `status` outlives the call.
        let pid = unsafe { libc::waitpid(-1, &mut status, libc::WNOHANG) };
        match pid {
            0 => return Children::Some,
            pid if pid > 0 => ended(pid, status),
            _ if io::Error::last_os_error().raw_os_error() == Some(libc::EINTR) => {}
            _ => return Children::None,
        }
    }
}

/// The daemon is gone: nobody below may live, and nothing of an engine's may stay in shared memory.
fn kill_all(waiting: &libc::sigset_t, shared: &mut Option<SharedFiles>) {
    let Some(me) = ProcFs::default().stat(std::process::id().cast_signed()) else { return };
    let mut tree = Tree::of(me.id).below_root();
    let deadline = Instant::now() + LAST_EFFORT;
    while Instant::now() < deadline {
        let members = tree.members().unwrap_or_default();
        if let Some(shared) = shared {
            shared.note(members.iter().map(|stat| stat.id.pid));
        }
        for stat in &members {
            if let Ok(Some(handle)) = Handle::open(stat.id) {
                let _ = handle.signal(Signal::KILL);
            }
        }
        if members.is_empty() && matches!(reap(|_, _| ()), Children::None) {
            if let Some(shared) = shared {
                shared.remove();
            }
            return;
        }
        wait_for_signal(waiting, Some(LOOK_AGAIN));
        reap(|_, _| ());
    }
}

fn wait_for_signal(set: &libc::sigset_t, longest: Option<Duration>) {
    match longest {
        // SAFETY: the set is initialised; no details of the signal are asked for.
        None => unsafe { libc::sigwaitinfo(set, std::ptr::null_mut()) },
        Some(longest) => {
            let longest = libc::timespec { tv_sec: 0, tv_nsec: longest.subsec_nanos().into() };
            // SAFETY: as above, and `longest` outlives the call.
            unsafe { libc::sigtimedwait(set, std::ptr::null_mut(), &longest) }
        }
    };
}

//! Holding: the first use of the driver waits for the daemon's word that it is this engine's turn on its GPUs.
//!
//! ```text
//!           cuInit: asks                  the word
//!  not asked ───────────▶ waiting ──────────────────────▶ passed: it, and what it forks, never asks again
//!     │                      │
//!     └── nobody listens ────┴── the daemon is gone, or has given the engine up ──▶ the process ends
//! ```
//!
//! Nothing of a GPU can be used before `cuInit` (every other call is refused by the driver until then), so a process that
//! waits in it has taken no GPU memory and has not looked at what is free. Versions, names of errors and NVML pass. Each
//! process asks for itself: one that an engine starts after its turn has come is told so at once. There is no time limit
//! here: the daemon has one, and ends the engine; if the daemon dies its side of the connection is closed.

use std::ffi::{c_int, c_uint};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU8, Ordering};

use crate::address::{self, Address};
use crate::hook::hooks;

/// Where the daemon listens for processes that are to be held: a path, or an abstract name behind `@`.
const SOCKET: &std::ffi::CStr = c"SWAPSERVE_HOLD";
/// The daemon's word; nothing else opens the way.
const GO: u8 = b'g';
/// `EX_UNAVAILABLE` of sysexits.h.
const UNAVAILABLE: c_int = 69;

const UNKNOWN: u8 = 0;
const NOT_ASKED: u8 = 1;
const HELD: u8 = 2;
const PASSED: u8 = 3;

static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);

hooks! {
    fn cuInit(flags: c_uint) {
        pass();
        // SAFETY: the caller's own argument.
        unsafe { real::cuInit(flags) }
    }
}

/// Whether this process was started to be held, whether or not it has passed meanwhile.
pub(crate) fn asked() -> bool {
    if STATE.load(Ordering::Relaxed) == UNKNOWN {
        // SAFETY: a constant C string; the value is only compared with null.
        let named = !unsafe { libc::getenv(SOCKET.as_ptr()) }.is_null();
        let state = if named { HELD } else { NOT_ASKED };
        // Another thread may have passed meanwhile.
        let _ = STATE.compare_exchange(UNKNOWN, state, Ordering::Relaxed, Ordering::Relaxed);
    }
    STATE.load(Ordering::Relaxed) != NOT_ASKED
}

/// Comes back when it is this process's turn, at once where it is not held.
fn pass() {
    if !asked() || STATE.load(Ordering::Acquire) == PASSED {
        return;
    }
    // Threads that come together ask each for itself: a lock would be left locked in a child that is forked meanwhile.
    match address::named_by(SOCKET).map_or(Word::Nobody, |address| ask(&address)) {
        Word::Go => STATE.store(PASSED, Ordering::Release),
        Word::Nobody => end("nobody is there who could say when its GPU is free; was the daemon killed?"),
        Word::Closed => end("it is not to be started any more"),
    }
}

/// What became of a question.
#[derive(Debug, PartialEq, Eq)]
enum Word {
    Go,
    /// There is no daemon of this user.
    Nobody,
    /// It has closed the connection.
    Closed,
}

fn ask(address: &Address) -> Word {
    let Some(socket) = address::connect(address, libc::SOCK_STREAM).filter(is_ours) else {
        return Word::Nobody;
    };
    let mut word = 0u8;
    loop {
        // SAFETY: one byte of a live local.
        let got = unsafe { libc::recv(socket.as_raw_fd(), (&raw mut word).cast(), 1, 0) };
        match got {
            1 if word == GO => return Word::Go,
            -1 if std::io::Error::last_os_error().kind() == std::io::ErrorKind::Interrupted => {}
            _ => return Word::Closed,
        }
    }
}

/// Whether this user's process listens: once the daemon is gone, anybody may take its abstract name.
fn is_ours(socket: &OwnedFd) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: a live local of the length given.
    let asked = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut peer).cast(),
            &raw mut length,
        )
    };
    // SAFETY: takes nothing and cannot fail.
    asked == 0 && peer.uid == unsafe { libc::geteuid() }
}

/// Ends the process, without running anything more of the engine's.
fn end(why: &str) -> ! {
    let text = format!("swapserve: this process was held before its first use of the GPU, and ends: {why}\n");
    // SAFETY: the standard error is open or the write fails; the descriptor is only borrowed for the call.
    let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    // SAFETY: a live buffer of that length. If nobody reads it, nothing is lost but the reason.
    unsafe {
        libc::write(stderr.as_raw_fd(), text.as_ptr().cast(), text.len());
        libc::_exit(UNAVAILABLE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener};

    /// A daemon that deals with the one who asks as `answer` says.
    fn told(name: &str, answer: impl FnOnce(std::os::unix::net::UnixStream) + Send) -> Word {
        let name = format!("swapserve-hold-test-{name}-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).expect("a short name");
        let listener = UnixListener::bind_addr(&address).expect("a name of this process alone");
        std::thread::scope(|scope| {
            scope.spawn(|| answer(listener.accept().expect("it asks").0));
            ask(&address::of(format!("@{name}").as_bytes()).expect("a short name"))
        })
    }

    #[test]
    fn the_word_lets_it_pass() {
        assert_eq!(told("go", |mut socket| socket.write_all(&[GO]).expect("it listens")), Word::Go);
    }

    #[test]
    fn anything_else_does_not() {
        assert_eq!(told("closed", drop), Word::Closed);
        assert_eq!(told("noise", |mut socket| socket.write_all(b"x").expect("it listens")), Word::Closed);
    }

    #[test]
    fn where_nobody_listens_nobody_passes() {
        let name = format!("@swapserve-hold-test-nobody-{}", std::process::id());
        assert_eq!(ask(&address::of(name.as_bytes()).expect("a short name")), Word::Nobody);
    }
}

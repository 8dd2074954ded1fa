//! Reading `/proc/PID/stat`: one process, or all of them in one cheap pass.
//!
//! The fields are those of proc_pid_stat(5). A pass costs one `openat`, `read` and `close` a process and
//! no allocation beyond the command's name.

use std::ffi::CStr;
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};

/// A process, told apart from every other that ever had its number: pids are recycled, a pid together
/// with its start time is not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct ProcId {
    /// The process id, as this process's PID namespace numbers it.
    pub pid: i32,
    /// Start time in clock ticks since boot (field 22 of `/proc/PID/stat`).
    pub start: u64,
}

impl fmt::Display for ProcId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.pid)
    }
}

/// What a process is doing, as far as this room cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `R`, `S`, `I`: runs or can be woken.
    Running,
    /// `D`: in the kernel, deaf to every signal until it comes back.
    Uninterruptible,
    /// `T`, `t`: stopped by a signal or a tracer.
    Stopped,
    /// `Z`, `X`: has exited; only its parent's wait is missing.
    Dead,
}

impl State {
    fn of(letter: u8) -> Self {
        match letter {
            b'D' => Self::Uninterruptible,
            b'T' | b't' => Self::Stopped,
            b'Z' | b'X' | b'x' => Self::Dead,
            _ => Self::Running,
        }
    }
}

/// One line of `/proc/PID/stat`, or of `/proc/PID/task/TID/stat`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// Who it is.
    pub id: ProcId,
    /// The name the kernel knows it by, at most 15 bytes.
    pub comm: Box<str>,
    /// What its first thread is doing.
    pub state: State,
    /// The parent's pid; after the parent's death, the nearest subreaper's.
    pub ppid: i32,
    /// Process group.
    pub group: i32,
    /// Session.
    pub session: i32,
    /// Threads in the process.
    pub threads: u32,
    /// CPU time that it has used, in clock ticks (hundredths of a second).
    pub ticks: u64,
}

impl Stat {
    /// Parses one line; `None` if it is not in the form of proc_pid_stat(5).
    pub fn parse(line: &[u8]) -> Option<Self> {
        // The name stands in brackets and may hold brackets and blanks itself: cut at the last one.
        let open = line.iter().position(|&b| b == b'(')?;
        let close = line.iter().rposition(|&b| b == b')')?;
        let comm = String::from_utf8_lossy(line.get(open + 1..close)?).into();
        let pid = number(line.get(..open)?)?;
        let mut fields = line.get(close + 1..)?.split(|b| b.is_ascii_whitespace()).filter(|f| !f.is_empty());
        let state = State::of(*fields.next()?.first()?);
        let ppid = number(fields.next()?)?;
        let group = number(fields.next()?)?;
        let session = number(fields.next()?)?;
        let user: u64 = number(fields.nth(7)?)?; // field 14
        let system: u64 = number(fields.next()?)?;
        let threads = number(fields.nth(4)?)?; // field 20
        let start = number(fields.nth(1)?)?; // field 22
        let ticks = user.saturating_add(system);
        Some(Self { id: ProcId { pid, start }, comm, state, ppid, group, session, threads, ticks })
    }

    /// Whether nothing of the process runs any more. A first thread that has exited while others still
    /// run shows as a zombie too; such a process lives.
    pub fn is_dead(&self) -> bool {
        self.state == State::Dead && self.threads <= 1
    }
}

fn number<T: std::str::FromStr>(field: &[u8]) -> Option<T> {
    std::str::from_utf8(field).ok()?.trim().parse().ok()
}

/// A mounted `/proc`, or a recorded one in tests.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
}

impl Default for ProcFs {
    fn default() -> Self {
        Self::at("/proc")
    }
}

impl ProcFs {
    /// The proc file system mounted at `root`.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// One process; `None` if there is none with this number.
    pub fn stat(&self, pid: i32) -> Option<Stat> {
        read_stat(CWD, self.root.join(pid.to_string()).join("stat"))
    }

    /// The process, if it still is the same one.
    pub fn same(&self, id: ProcId) -> Option<Stat> {
        self.stat(id.pid).filter(|stat| stat.id == id)
    }

    /// Every process that this one may see, in one pass.
    ///
    /// # Errors
    /// When the directory itself cannot be read. Processes that end during the pass are left out.
    pub fn scan(&self) -> io::Result<Vec<Stat>> {
        self.each_number(&self.root)
    }

    /// Every thread of a process; empty if it is gone.
    pub fn threads(&self, pid: i32) -> Vec<Stat> {
        self.each_number(&self.root.join(pid.to_string()).join("task")).unwrap_or_default()
    }

    /// The environment the process was started with, as `NAME=value` entries that each end in a zero byte.
    /// Empty for a moment while it executes a program, and for good if it wrote its title over it (as
    /// `setproctitle` does).
    ///
    /// # Errors
    /// When the process is gone or another user's.
    pub fn environ(&self, pid: i32) -> io::Result<Vec<u8>> {
        std::fs::read(self.root.join(pid.to_string()).join("environ"))
    }

    fn each_number(&self, dir: &Path) -> io::Result<Vec<Stat>> {
        let dir = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut entries = RawDir::new(&dir, &mut buffer);
        let mut found = Vec::with_capacity(256);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            if let Some(stat) = read_numbered(&dir, entry.file_name()) {
                found.push(stat);
            }
        }
        Ok(found)
    }
}

/// The value of `name` in what [`ProcFs::environ`] returned.
pub(super) fn value_in<'a>(environ: &'a [u8], name: &str) -> Option<&'a [u8]> {
    environ.split(|&b| b == 0).find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))
}

/// Reads `NAME/stat` where `NAME` is a number; `None` for the other entries of `/proc`.
fn read_numbered(dir: &OwnedFd, name: &CStr) -> Option<Stat> {
    let name = name.to_bytes();
    if !name.first()?.is_ascii_digit() || name.len() > 11 {
        return None;
    }
    let mut path = [0u8; 17];
    path[..name.len()].copy_from_slice(name);
    path[name.len()..name.len() + 5].copy_from_slice(b"/stat");
    let path = CStr::from_bytes_until_nul(&path).ok()?;
    read_stat(dir, path)
}

fn read_stat<D: std::os::fd::AsFd, P: rustix::path::Arg>(dir: D, path: P) -> Option<Stat> {
    let file = openat(dir, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    // A line is about 300 bytes; the fields read here stand in its first half.
    let mut line = [0u8; 1024];
    let length = rustix::io::read(&file, &mut line[..]).ok()?;
    Stat::parse(&line[..length])
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &[u8] =
        b"4711 (VLLM::Eng (x) y) S 4700 4690 4680 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 137 0 987654 1 2 3\n";

    #[test]
    fn a_name_with_brackets_does_not_shift_the_fields() {
        let stat = Stat::parse(LINE).expect("a whole line");
        assert_eq!(stat.id, ProcId { pid: 4711, start: 987_654 });
        assert_eq!(&*stat.comm, "VLLM::Eng (x) y");
        assert_eq!((stat.ppid, stat.group, stat.session, stat.threads), (4700, 4690, 4680, 137));
        assert_eq!(stat.state, State::Running);
    }

    #[test]
    fn a_cut_line_is_refused() {
        assert_eq!(Stat::parse(&LINE[..40]), None);
        assert_eq!(Stat::parse(b""), None);
        assert_eq!(Stat::parse(b") ("), None);
    }

    #[test]
    fn a_zombie_with_threads_lives() {
        let line = b"7 (a) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 3 0 55 0";
        assert!(!Stat::parse(line).expect("a whole line").is_dead());
        let line = b"7 (a) Z 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 55 0";
        assert!(Stat::parse(line).expect("a whole line").is_dead());
    }

    #[test]
    fn this_process_is_in_a_pass() {
        let proc = ProcFs::default();
        let me = std::process::id() as i32;
        let all = proc.scan().expect("/proc is mounted");
        let found = all.iter().find(|s| s.id.pid == me).expect("this process is listed");
        assert_eq!(Some(found.id), proc.stat(me).map(|s| s.id));
        assert_eq!(proc.same(ProcId { start: found.id.start + 1, ..found.id }), None);
        assert!(!proc.threads(me).is_empty());
    }
}

//! Why an engine cannot be parked, in words for a person.
//!
//! ```text
//!  pool (who has connected, with what) ──┐
//!  NVML (who holds how much)           ──┼──▶ Seen, one a process ──▶ judge (pure) ──▶ the reason, or none
//!  /proc (what is loaded in whom)      ──┘
//! ```
//!
//! A process with the preload library connects with its first allocation of 1 MiB or more, and is refused where the two
//! are of different versions. One that holds GPU memory and has not connected reached the driver past the library; what
//! lies in its address space tells how.

use std::os::unix::fs::MetadataExt;

use super::call::{ParkedProcess, PoolState};
use crate::gpu::protocol::ProcessMemory;
use crate::units::Bytes;

/// GPU memory that a process without parkable memory may hold beside others that have some: a context and what belongs
/// to it (measured: 0.3 to 0.8 GiB).
const CONTEXT: u64 = 1 << 30;
/// File name of the preload library, as it stands in a process's list of mappings.
const LIBRARY: &str = "libswapserve_preload.so";

/// One process of an engine, from every side.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Its id.
    pub pid: i32,
    /// Bytes on all GPUs by NVML; nothing where NVML names no such process or no bytes.
    pub held: Option<u64>,
    /// What the memory server knows of it; nothing while it has not connected.
    pub known: Option<ParkedProcess>,
    /// Its preload library is of another version than the memory server.
    pub other_version: bool,
    /// What can be said of its program.
    pub program: Program,
}

/// What a process's address space tells.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Program {
    /// Its executable, for messages.
    pub name: String,
    /// Whether its address space could be read at all.
    pub readable: bool,
    /// The executable takes rights from its file (setuid, setgid or capabilities): the loader leaves preload libraries out.
    pub privileged: bool,
    /// It has no dynamic loader: nothing can be loaded before its own code.
    pub static_link: bool,
    /// The preload library is in it.
    pub preloaded: bool,
    /// `libcuda.so.1` is in it.
    pub driver: bool,
    /// It is in another network namespace than this process, where the memory server's socket is not.
    pub elsewhere: bool,
}

/// Why the processes of an engine cannot be parked; nothing if they can. `held` is what NVML says of every process.
///
/// Reads `/proc` of those that have not connected.
pub fn why_not(pids: &[i32], pool: &PoolState, held: &[ProcessMemory]) -> Option<String> {
    let seen = |&pid: &i32| {
        let known = pool.processes.iter().find(|it| it.pid == pid).cloned();
        let mut bytes = held.iter().filter(|it| it.pid == pid).peekable();
        let held = bytes.peek().is_some().then(|| bytes.filter_map(|it| it.bytes).sum());
        let program = if known.is_some() { Program::default() } else { Program::of(pid) };
        let other_version = pool.other_versions.contains(&pid);
        Seen { pid, held, known, other_version, program }
    };
    judge(&pids.iter().map(seen).collect::<Vec<_>>())
}

/// The same over what has been seen: pure.
pub fn judge(seen: &[Seen]) -> Option<String> {
    let known: Vec<&ParkedProcess> = seen.iter().filter_map(|it| it.known.as_ref()).collect();
    let parkable: u64 = known.iter().map(|it| it.here + it.away).sum();
    // Those that use a GPU and have not connected, whoever holds most first.
    let mut strangers: Vec<&Seen> = seen.iter().filter(|it| it.known.is_none() && it.uses_a_gpu()).collect();
    strangers.sort_by_key(|it| std::cmp::Reverse(it.held));
    if parkable > 0 {
        let large = strangers.iter().find(|it| it.held.unwrap_or(0) > CONTEXT)?;
        return Some(format!("of its processes only some can be parked: {}", large.reason()));
    }
    if let Some(stranger) = strangers.first() {
        return Some(stranger.reason());
    }
    if known.is_empty() {
        return Some("none of its processes uses a GPU".to_owned());
    }
    Some(nothing_parkable(&known))
}

/// Whether one of these processes has the preload library and the driver, and the memory server does not know it: its first
/// connection may be on its way, which a busy machine delays.
pub fn may_still_connect(pids: &[i32], pool: &PoolState) -> bool {
    let known =
        |pid: i32| pool.processes.iter().any(|it| it.pid == pid) || pool.other_versions.contains(&pid);
    let loaded = |pid: i32| {
        let program = Program::of(pid);
        program.preloaded && program.driver
    };
    pids.iter().any(|&pid| !known(pid) && loaded(pid))
}

/// Refuses processes that are known to have opened memory of others: after a checkpoint the driver cannot restore them
/// (seen with driver 580), and they are lost. Of processes without the preload library nothing is known.
///
/// # Errors
/// Which process, in words.
pub fn has_imported(pids: &[i32], pool: &PoolState) -> Result<(), String> {
    match pool.processes.iter().find(|it| pids.contains(&it.pid) && it.imported > 0) {
        None => Ok(()),
        Some(process) => Err(format!(
            "process {} has opened memory of another process ({} times), and what is checkpointed with such memory the \
             driver cannot restore",
            process.pid, process.imported
        )),
    }
}

/// Why processes with the library have nothing that can be parked.
fn nothing_parkable(known: &[&ParkedProcess]) -> String {
    let sum = |part: fn(&ParkedProcess) -> u64| known.iter().map(|it| part(it)).sum::<u64>();
    let (shared, managed, pooled) = (sum(|it| it.shared), sum(|it| it.managed), sum(|it| it.pooled));
    let mut reasons = Vec::new();
    if shared > 0 {
        reasons.push(format!(
            "it shares all its device memory ({}) with other processes, and shared memory stays where it is",
            Bytes(shared)
        ));
    }
    if managed > 0 {
        reasons.push(format!(
            "it has made {managed} managed allocations (cuMemAllocManaged), which only the driver can move"
        ));
    }
    if pooled > 0 {
        reasons.push(format!(
            "it has made {pooled} allocations from pools that can be exported or are limited, whose memory stays where it is"
        ));
    }
    if sum(|it| it.ipc_refused) > 0 {
        reasons.push("it wants legacy IPC handles, which parkable memory does not have".to_owned());
    }
    if reasons.is_empty() {
        reasons.push("it holds no device allocation of 1 MiB or more".to_owned());
    }
    reasons.join("; ")
}

impl Seen {
    fn uses_a_gpu(&self) -> bool {
        self.held.is_some() || self.program.driver || self.other_version
    }

    /// Why this process, which uses a GPU, is not known to the memory server.
    fn reason(&self) -> String {
        let Self { pid, program, .. } = self;
        let held = match self.held {
            Some(bytes) if bytes > 0 => format!("holds {} on GPUs", Bytes(bytes)),
            _ => "uses a GPU".to_owned(),
        };
        let name = if program.name.is_empty() { String::new() } else { format!(" ({})", program.name) };
        let because = match program {
            _ if self.other_version => {
                "the preload library in it is of another version than this program: install both from one build, or have \
                 SWAPSERVE_PRELOAD name the library that belongs to it"
            }
            Program { readable: false, .. } => {
                "has not met the memory server, and what is loaded in it cannot be read: it has ended, or runs with other rights (setuid), which take no preload library"
            }
            Program { privileged: true, .. } => {
                "its program takes rights from its file (setuid, setgid or capabilities), and the loader gives such a program no preload library"
            }
            Program { static_link: true, .. } => {
                "its program is linked statically, driver and all, and no library can be loaded before it"
            }
            Program { preloaded: false, .. } => {
                "the preload library is not loaded in it: a wrapper or container on the way dropped LD_PRELOAD"
            }
            Program { driver: false, .. } => {
                "the preload library is loaded, but it reaches the driver without libcuda.so.1"
            }
            Program { elsewhere: true, .. } => {
                "it is in a network namespace of its own, from which the memory server cannot be reached: a container started with its own network"
            }
            Program { driver: true, .. } => {
                "the preload library is loaded, but calls go past it: the driver was opened with RTLD_DEEPBIND or a loader of the program's own, or it has made no allocation of 1 MiB or more"
            }
        };
        format!("process {pid}{name} {held}, and {because}")
    }
}

impl Program {
    /// What `/proc` tells of a process.
    fn of(pid: i32) -> Self {
        let folder = std::path::Path::new("/proc").join(pid.to_string());
        let link = folder.join("exe");
        let name = std::fs::read_link(&link)
            .ok()
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()))
            .unwrap_or_default();
        let maps = std::fs::read_to_string(folder.join("maps")).unwrap_or_default();
        let maps_name = |part: &str| maps.lines().any(|line| line.contains(part));
        Self {
            name,
            readable: !maps.is_empty(),
            privileged: takes_rights(&link),
            // The loader is `ld-linux-x86-64.so.2`, `ld-2.31.so` on older systems.
            static_link: !maps_name("/ld-"),
            preloaded: maps_name(LIBRARY),
            driver: maps_name("/libcuda.so"),
            elsewhere: elsewhere(&folder),
        }
    }
}

/// Whether a process is in another network namespace than this one; false if that cannot be seen.
fn elsewhere(folder: &std::path::Path) -> bool {
    let of = |folder: &std::path::Path| std::fs::read_link(folder.join("ns/net")).ok();
    of(folder).zip(of(std::path::Path::new("/proc/self"))).is_some_and(|(its, ours)| its != ours)
}

/// Whether an executable gives who runs it other rights than they have.
fn takes_rights(executable: &std::path::Path) -> bool {
    // SAFETY: neither can fail.
    let (user, group) = unsafe { (libc::getuid(), libc::getgid()) };
    let identity = std::fs::metadata(executable).is_ok_and(|it| {
        (it.mode() & libc::S_ISUID != 0 && it.uid() != user)
            || (it.mode() & libc::S_ISGID != 0 && it.gid() != group)
    });
    let Ok(path) = std::ffi::CString::new(executable.as_os_str().as_encoded_bytes()) else { return identity };
    // SAFETY: two C strings; without a buffer only the attribute's length is told.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), c"security.capability".as_ptr(), std::ptr::null_mut(), 0) };
    identity || length > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn known(parked: ParkedProcess) -> Seen {
        Seen { pid: 7, held: Some(GIB), known: Some(parked), ..Seen::default() }
    }

    fn stranger(held: u64, program: Program) -> Seen {
        let program = Program { readable: true, ..program };
        Seen { pid: 9, held: Some(held), program, ..Seen::default() }
    }

    #[test]
    fn with_memory_that_can_be_parked_there_is_no_reason() {
        let engine = known(ParkedProcess { here: GIB, shared: 1, managed: 1, ..ParkedProcess::default() });
        assert_eq!(judge(std::slice::from_ref(&engine)), None);
        // A helper with a context and nothing else does not matter …
        assert_eq!(judge(&[engine.clone(), stranger(GIB / 2, Program::default())]), None);
        // … a worker with weights does.
        let reason = judge(&[engine, stranger(5 * GIB, Program::default())]).unwrap();
        assert!(reason.contains("only some") && reason.contains("process 9 holds 5.0 GiB"), "{reason}");
    }

    #[test]
    fn who_has_opened_memory_of_others_is_named() {
        let processes = vec![
            ParkedProcess { pid: 7, here: GIB, ..ParkedProcess::default() },
            ParkedProcess { pid: 8, here: GIB, imported: 2, ..ParkedProcess::default() },
        ];
        let pool = PoolState { processes, ..PoolState::default() };
        assert_eq!(has_imported(&[7, 9], &pool), Ok(()));
        assert!(has_imported(&[7, 8], &pool).unwrap_err().contains("process 8 has opened"));
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let default = Program { preloaded: true, driver: true, ..Program::default() };
        for (seen, words) in [
            (known(ParkedProcess { shared: GIB, ..ParkedProcess::default() }), "shares all"),
            (known(ParkedProcess { managed: 2, ..ParkedProcess::default() }), "2 managed allocations"),
            (known(ParkedProcess { pooled: 2, ..ParkedProcess::default() }), "2 allocations from pools"),
            (known(ParkedProcess { ipc_refused: 2, ..ParkedProcess::default() }), "legacy IPC"),
            (known(ParkedProcess::default()), "no device allocation of 1 MiB"),
            (stranger(GIB, Program { privileged: true, ..default.clone() }), "setuid"),
            (stranger(GIB, Program { static_link: true, ..default.clone() }), "linked statically"),
            (stranger(GIB, Program { preloaded: false, ..default.clone() }), "dropped LD_PRELOAD"),
            (stranger(GIB, Program { driver: false, ..default.clone() }), "without libcuda.so.1"),
            (stranger(GIB, Program { elsewhere: true, ..default.clone() }), "network namespace"),
            (stranger(GIB, default.clone()), "RTLD_DEEPBIND"),
            (Seen { other_version: true, ..stranger(GIB, default.clone()) }, "of another version"),
            (Seen { held: Some(1), ..Seen::default() }, "cannot be read"),
            (Seen::default(), "none of its processes uses a GPU"),
        ] {
            let reason = judge(&[seen]).unwrap();
            assert!(reason.contains(words), "{words}: {reason}");
        }
    }

    #[test]
    fn the_program_of_this_process_is_read() {
        let program = Program::of(std::process::id().cast_signed());
        assert!(
            !program.elsewhere
                && program.readable
                && !program.static_link
                && !program.privileged
                && !program.preloaded
        );
        assert!(!program.name.is_empty());
        assert!(!Program::of(-1).readable);
    }
}

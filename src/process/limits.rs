//! This process's own limits, and what its children get back.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::{io, sync::OnceLock};

/// The limit on core dumps that this process was started with.
static CORE: OnceLock<Rlimit> = OnceLock::new();
/// The limit on open files that this process was started with, once it has raised its own.
static GIVEN: OnceLock<Rlimit> = OnceLock::new();

/// Raises the number of files this process may hold open to what it is allowed (`RLIMIT_NOFILE`, soft to hard): each
/// open stream takes two. Children are started with the limit that the job gave: programs that use `select` break beyond
/// 1024, and some close every number up to the limit.
///
/// # Errors
/// When the kernel refuses; the old limit then holds.
pub fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    GIVEN.get_or_init(|| limit);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?)
}

/// The limit on open files for children; nothing where this process has its own still.
pub(super) fn open_files_of_children() -> Option<Rlimit> {
    GIVEN.get().copied()
}

/// Keeps this process from dumping core, for its memory holds the run's key. Children that are allowed to dump are given
/// back what this process was started with.
///
/// # Errors
/// When the kernel refuses; the old limit then holds.
pub fn dump_no_core() -> io::Result<()> {
    let now = *CORE.get_or_init(|| getrlimit(Resource::Core));
    Ok(setrlimit(Resource::Core, Rlimit { maximum: now.maximum, ..no_core(now) })?)
}

/// A child's limit on core dumps.
pub(super) fn core_limit(allowed: bool) -> Rlimit {
    let started_with = *CORE.get_or_init(|| getrlimit(Resource::Core));
    if allowed { started_with } else { no_core(started_with) }
}

/// Nothing is dumped to a file (a core has at least a page), nor into a program that `core_pattern` names: that one is
/// called whatever the limit, unless it is 1 (core(5); `fs/coredump.c`).
fn no_core(now: Rlimit) -> Rlimit {
    let least = Some(now.maximum.unwrap_or(u64::MAX).min(1));
    Rlimit { current: least, maximum: least }
}

//! This process's own limits.

use rustix::process::{Resource, getrlimit, setrlimit};
use std::io;

/// Raises the number of files this process may hold open to what it is allowed (`RLIMIT_NOFILE`, soft to hard): each
/// open stream takes two. Children inherit it.
///
/// # Errors
/// When the kernel refuses; the old limit then holds.
pub fn raise_open_files() -> io::Result<()> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    Ok(setrlimit(Resource::Nofile, limit)?)
}

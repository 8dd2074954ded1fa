//! The run directory: sockets, logs and the key, for nobody but this user, gone with the run.
//!
//! It lies on the node's own disk with a short name, because a Unix socket's path may be 107 bytes long (unix(7)), and
//! its mode is 0700: on a shared node that is what keeps other users from the engines.

use super::leftovers::{self, Owner};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
};

/// Longest path of a socket in it: 108 bytes with the closing zero, less `/` and the longest name we use.
const LONGEST: usize = 107 - 1 - 40;
/// The variable that marks every process of a run: the run's cookie, `/`, and the model's name (nothing: the command's).
pub const COOKIE: &str = "SWAPSERVE_RUN";
/// Bytes of a key: 256 bits from the kernel.
const KEY_BYTES: usize = 32;

/// The run's own directory. Dropping it removes it.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    cookie: String,
    open: bool,
}

/// The directory cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// It cannot be made or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is somebody else's, or open to others.
    #[error("{} {what}; another user could reach the engines through it", path.display())]
    Unsafe {
        /// What.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Too long for sockets.
    #[error("{} is longer than {LONGEST} bytes; a Unix socket in it could not be bound (unix(7))", path.display())]
    TooLong {
        /// What.
        path: PathBuf,
    },
    /// The kernel gave no random bytes.
    #[error("the kernel gave no random bytes: {0}")]
    Random(getrandom::Error),
}

impl RunDir {
    /// Makes `wanted`, or a new directory in `$TMPDIR` or `/tmp`, whichever is short enough and can be written. A directory
    /// that is already there must be this user's, and empty or left by a run that was killed.
    ///
    /// # Errors
    /// See [`RunDirError`].
    pub fn create(job: Option<&str>, wanted: Option<&Path>) -> Result<Self, RunDirError> {
        let cookie = random_text(12)?;
        if let Some(path) = wanted {
            return Self::make(path.to_owned(), cookie);
        }
        let name = format!("{}{}", name_prefix(job), &cookie[..8]);
        let mut first_error = None;
        for parent in parents() {
            match Self::make(parent.join(&name), cookie.clone()) {
                Ok(made) => return Ok(made),
                Err(error) => first_error = first_error.or(Some(error)),
            }
        }
        Err(first_error.expect("/tmp is always tried"))
    }

    fn make(path: PathBuf, cookie: String) -> Result<Self, RunDirError> {
        if path.as_os_str().len() > LONGEST {
            return Err(RunDirError::TooLong { path });
        }
        let io = |source| RunDirError::Io { path: path.clone(), source };
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => reuse(&path)?,
            Err(error) => return Err(io(error)),
        }
        // The creation mask may have taken bits away, never added any.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).map_err(io)?;
        make_private_dir(&path.join("log")).map_err(io)?;
        Owner::this_process(&cookie).write(&path).map_err(io)?;
        Ok(RunDir { path, cookie, open: true })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where engines' logs go.
    pub fn logs(&self) -> PathBuf {
        self.path.join("log")
    }

    /// The router's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.path.join("swapserve.sock")
    }

    /// Marks every process of this run: random, so that no other run has the same.
    pub fn cookie(&self) -> &str {
        &self.cookie
    }

    /// Makes the key that clients need, 256 bits in URL-safe letters, in a file of mode 0600.
    ///
    /// # Errors
    /// When the file cannot be written, or the kernel gives no random bytes.
    pub fn make_key(&self) -> Result<Arc<str>, RunDirError> {
        let key = format!("sk-swapserve-{}", random_text(KEY_BYTES)?);
        let path = self.key_file();
        write_private(&path, key.as_bytes()).map_err(|source| RunDirError::Io { path, source })?;
        Ok(Arc::from(key))
    }

    /// Where the key is.
    pub fn key_file(&self) -> PathBuf {
        key_file(&self.path)
    }

    /// Removes the key ahead of the rest, which is removed in any case.
    pub fn remove_key(&self) {
        let _ = fs::remove_file(self.key_file());
    }

    /// Removes it with everything in it.
    ///
    /// # Errors
    /// What could not be removed, and why.
    pub fn close(mut self) -> Result<(), RunDirError> {
        self.open = false;
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(RunDirError::Io { path: self.path.clone(), source })
            }
            _ => Ok(()),
        }
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        if self.open {
            // Nobody is left to tell; the next run's sweep finds what remains.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Where the key is in a run directory.
pub(super) fn key_file(run_dir: &Path) -> PathBuf {
    run_dir.join("key")
}

/// How the names of a job's run directories begin.
pub(super) fn name_prefix(job: Option<&str>) -> String {
    format!("swapserve-{}-", job.unwrap_or("local"))
}

/// Where run directories are made, the best place first. Not in `$XDG_RUNTIME_DIR`: logind removes that when the user's last
/// shell on the node ends, whatever else of his runs there.
fn parents() -> impl Iterator<Item = PathBuf> {
    let named = std::env::var_os("TMPDIR").map(PathBuf::from);
    named.into_iter().chain([PathBuf::from("/tmp")]).filter(|parent| parent.is_absolute())
}

/// Where killed runs may have left theirs; earlier versions used `$XDG_RUNTIME_DIR` as well.
pub(super) fn swept_parents() -> impl Iterator<Item = PathBuf> {
    let earlier = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    parents().chain(earlier.filter(|parent| parent.is_absolute()))
}

/// Whether a directory that is already there may be used.
fn reuse(path: &Path) -> Result<(), RunDirError> {
    let io = |source| RunDirError::Io { path: path.to_owned(), source };
    let found = fs::symlink_metadata(path).map_err(io)?;
    let wrong = |what| Err(RunDirError::Unsafe { path: path.to_owned(), what });
    if !found.is_dir() {
        return wrong("is not a directory");
    }
    if found.uid() != rustix::process::geteuid().as_raw() {
        return wrong("belongs to another user");
    }
    if leftovers::is_abandoned(path) {
        fs::remove_dir_all(path).map_err(io)?;
        return DirBuilder::new().mode(0o700).create(path).map_err(io);
    }
    if fs::read_dir(path).map_err(io)?.next().is_some() {
        return wrong("is not empty");
    }
    Ok(())
}

/// Makes a directory of mode 0700, and what is missing above it.
///
/// # Errors
/// What the system says.
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Writes a file of mode 0600 so that nobody ever sees half of it: a new file beside it, synced, renamed over it.
pub(super) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    // A name that nobody can guess, and a file that is ours from its first moment: in a directory that others may write to,
    // one of them could have put a file or a link of theirs there.
    let random = random_text(6).map_err(|error| io::Error::other(error.to_string()))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let draft = path.with_file_name(format!(".{name}.{random}"));
    let written = write_new(&draft, content).and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        let _ = fs::remove_file(&draft);
        return Err(error);
    }
    // The rename itself, for a reader on another node of a network file system.
    if let Some(parent) = path.parent() {
        File::open(parent)?.sync_all()?;
    }
    Ok(())
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

/// `bytes` random bytes as letters and digits that need no quoting anywhere.
fn random_text(bytes: usize) -> Result<String, RunDirError> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = vec![0; (bytes * 8).div_ceil(6)];
    getrandom::fill(&mut random).map_err(RunDirError::Random)?;
    Ok(random.iter().map(|byte| char::from(LETTERS[usize::from(byte & 63)])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_ours_alone_and_goes_with_the_run() {
        let parent = tempfile::tempdir().unwrap();
        let dir = RunDir::create(Some("7"), Some(&parent.path().join("run"))).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().mode() & 0o777, 0o700);
        let key = dir.make_key().unwrap();
        assert_eq!(fs::metadata(dir.key_file()).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_to_string(dir.key_file()).unwrap(), *key);
        let path = dir.path().to_owned();
        dir.close().unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_link_or_a_full_directory_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/tmp", parent.path().join("link")).unwrap();
        let error = RunDir::create(None, Some(&parent.path().join("link"))).unwrap_err().to_string();
        assert!(error.contains("is not a directory"), "{error}");
        fs::write(parent.path().join("file"), "").unwrap();
        let error = RunDir::create(None, Some(parent.path())).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
    }

    #[test]
    fn a_path_too_long_for_sockets_is_refused() {
        let long = Path::new("/tmp").join("x".repeat(80));
        assert!(matches!(RunDir::create(None, Some(&long)), Err(RunDirError::TooLong { .. })));
    }

    #[test]
    fn keys_differ() {
        assert_ne!(random_text(32).unwrap(), random_text(32).unwrap());
        assert_eq!(random_text(32).unwrap().len(), 43);
    }
}

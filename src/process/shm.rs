//! Files in shared memory (`/dev/shm`) that a tree of processes made and would leave behind.
//!
//! Engines with worker processes exchange data through such files, and remove them when they end in order. One that is
//! killed leaves them, and they are memory of the node, not of any process: they outlive the job. So what a tree has mapped
//! is noted while it lives, and removed when it is gone. Three signs together make a file the tree's own:
//!
//! 1. it was not there before the tree was;
//! 2. the tree has it mapped shared and writable, as means of exchange are (weights that lie there are only read);
//! 3. nobody who still lives has it mapped.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::stat::ProcFs;

/// How the names of lists of such files end, in a run directory.
pub const SHARED_LIST: &str = "shm";
/// Where the C library's `shm_open` puts files (shm_overview(7)).
const DIR: &str = "/dev/shm";

/// A file, told apart from any later one of its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct SharedFile {
    path: PathBuf,
    inode: u64,
}

/// What one tree has made.
#[derive(Clone, Debug)]
pub struct SharedFiles {
    dir: PathBuf,
    proc: ProcFs,
    before: HashSet<u64>,
    seen: HashMap<u64, PathBuf>,
}

impl SharedFiles {
    /// The directory that shared memory is in.
    pub const DIR: &str = DIR;

    /// Takes note of what is there before the tree is.
    pub fn before() -> Self {
        Self::before_in(Path::new(DIR), ProcFs::default())
    }

    fn before_in(dir: &Path, proc: ProcFs) -> Self {
        let there = fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.ino());
        Self { dir: dir.to_owned(), proc, before: there.collect(), seen: HashMap::new() }
    }

    /// Takes note of what these processes of the tree have mapped; whether that was news.
    pub fn note(&mut self, pids: impl IntoIterator<Item = i32>) -> bool {
        let known = self.seen.len();
        for pid in pids {
            let maps = read_maps(&self.proc, pid);
            let mapped = maps.lines().filter_map(|line| mapping(line, &self.dir));
            let own = mapped.filter(|found| found.exchange && !self.before.contains(&found.inode));
            let own: Vec<_> = own.map(|found| (found.inode, found.path.to_owned())).collect();
            self.seen.extend(own);
        }
        self.seen.len() != known
    }

    /// All that was noted.
    pub fn noted(&self) -> Vec<SharedFile> {
        self.seen.iter().map(|(inode, path)| SharedFile { path: path.clone(), inode: *inode }).collect()
    }

    /// The tree is gone: removes what it left. What was removed.
    pub fn remove(&mut self) -> Vec<PathBuf> {
        let noted = self.noted();
        self.seen.clear();
        remove_from(&self.dir, &self.proc, noted)
    }
}

/// Removes files that trees which are gone have left; what was removed.
pub fn remove_shared(files: Vec<SharedFile>) -> Vec<PathBuf> {
    remove_from(Path::new(DIR), &ProcFs::default(), files)
}

fn remove_from(dir: &Path, proc: &ProcFs, mut files: Vec<SharedFile>) -> Vec<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    files.retain(|file| {
        file.path.parent() == Some(dir)
            && fs::symlink_metadata(&file.path)
                .is_ok_and(|found| found.is_file() && found.ino() == file.inode && found.uid() == user)
    });
    if files.is_empty() {
        return Vec::new();
    }
    let mut in_use = HashSet::new();
    for stat in proc.scan().unwrap_or_default() {
        let maps = read_maps(proc, stat.id.pid);
        in_use.extend(maps.lines().filter_map(|line| mapping(line, dir)).map(|found| found.inode));
    }
    files.retain(|file| !in_use.contains(&file.inode) && fs::remove_file(&file.path).is_ok());
    files.into_iter().map(|file| file.path).collect()
}

/// Another user's cannot be read, and is not ours to ask.
fn read_maps(proc: &ProcFs, pid: i32) -> String {
    let maps = fs::read(proc.root().join(pid.to_string()).join("maps")).unwrap_or_default();
    String::from_utf8_lossy(&maps).into_owned()
}

struct Mapping<'a> {
    inode: u64,
    path: &'a Path,
    /// Shared and writable.
    exchange: bool,
}

/// A line of proc_pid_maps(5) that maps a file right in `dir`: `range perms offset device inode path`.
fn mapping<'a>(line: &'a str, dir: &Path) -> Option<Mapping<'a>> {
    let (rest, path) = line.split_once(" /").map(|(rest, _)| (rest, &line[rest.len() + 1..]))?;
    let path = Path::new(path);
    if path.parent() != Some(dir) || line.ends_with(" (deleted)") {
        return None;
    }
    let mut fields = rest.split_ascii_whitespace();
    let perms = fields.nth(1)?.as_bytes();
    let inode = fields.nth(2)?.parse().ok()?;
    Some(Mapping { inode, path, exchange: perms.get(1) == Some(&b'w') && perms.get(3) == Some(&b's') })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A recorded `/proc` whose process 7 has the files mapped with these permissions.
    fn proc_with(dir: &Path, files: &[(&Path, &str)]) -> ProcFs {
        let root = dir.join("proc");
        let line = |(path, perms): &(&Path, &str)| {
            let inode = fs::metadata(path).expect("it is there").ino();
            format!("7f00-7f01 {perms} 00000000 00:1a {inode}   {}\n", path.display())
        };
        fs::create_dir_all(root.join("7")).expect("made");
        fs::write(root.join("7/stat"), "7 (engine) S 1 7 7 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 55 0")
            .expect("written");
        let maps: String = files.iter().map(line).collect();
        fs::write(root.join("7/maps"), format!("7eff-7f00 r-xp 00000000 08:01 9 /usr/bin/engine\n{maps}"))
            .expect("written");
        ProcFs::at(root)
    }

    #[test]
    fn only_what_the_tree_made_for_exchange_is_removed_when_nobody_has_it() {
        let root = tempfile::tempdir().expect("a directory");
        let shm = root.path().join("shm");
        fs::create_dir(&shm).expect("made");
        let file = |name: &str| {
            let path = shm.join(name);
            fs::write(&path, name).expect("written");
            path
        };
        let another_jobs = file("psm_before");
        let mut files = SharedFiles::before_in(&shm, ProcFs::at(root.path().join("proc")));
        let (own, weights, theirs) = (file("psm_own"), file("weights.gguf"), file("psm_theirs"));
        proc_with(
            root.path(),
            &[(&another_jobs, "rw-s"), (&own, "rw-s"), (&weights, "r--s"), (&theirs, "rw-p")],
        );
        assert!(files.note([7]));
        assert!(!files.note([7]), "no news");
        assert!(files.clone().remove().is_empty(), "it is still in use");
        fs::remove_dir_all(root.path().join("proc/7")).expect("the engine ends");
        assert_eq!(files.remove(), [own]);
        assert!(another_jobs.exists() && weights.exists() && theirs.exists());
    }

    #[test]
    fn another_file_of_the_same_name_stays() {
        let root = tempfile::tempdir().expect("a directory");
        let shm = root.path().join("shm");
        fs::create_dir(&shm).expect("made");
        let path = shm.join("psm");
        fs::write(&path, "").expect("written");
        let inode = fs::metadata(&path).expect("there").ino();
        let noted = vec![SharedFile { path: path.clone(), inode: inode + 1 }];
        assert!(remove_from(&shm, &ProcFs::at(root.path()), noted).is_empty() && path.exists());
        let outside = root.path().join("psm");
        fs::write(&outside, "").expect("written");
        let inode = fs::metadata(&outside).expect("there").ino();
        let noted = vec![SharedFile { path: outside.clone(), inode }];
        assert!(remove_from(&shm, &ProcFs::at(root.path()), noted).is_empty() && outside.exists());
    }
}

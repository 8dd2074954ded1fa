//! `/proc` and the cgroup's files, which say what processes call themselves and what the site has set up.

use std::{cell::RefCell, fs, path::PathBuf};
use swapserve::{job::memory, process::Stat};
use tempfile::TempDir;

thread_local! {
    static ROOT: RefCell<Option<TempDir>> = const { RefCell::new(None) };
}

pub fn run(data: &[u8]) {
    for line in data.split(|b| *b == b'\n') {
        if let Some(stat) = Stat::parse(line) {
            assert!(line.contains(&b'(') && stat.comm.len() <= 3 * line.len());
        }
    }
    let root = ROOT.with_borrow_mut(|root| root.get_or_insert_with(make).path().to_owned());
    // The first part is /proc/self/cgroup, the second one of the files below the cgroup's root, the third /proc/meminfo.
    let mut parts = data.splitn(3, |b| *b == 0);
    let [own, limit, available] = [(); 3].map(|()| parts.next().unwrap_or_default());
    let write = |path: &str, bytes: &[u8]| fs::write(root.join(path), bytes).expect("it is writable");
    write("proc/self/cgroup", own);
    write("cg/a/memory.max", limit);
    // The same again, and not `fs::copy`: that gives up when a timer's signal comes in between.
    write("cg/memory/memory.stat", limit);
    write("proc/meminfo", available);
    memory::limit(&root.join("proc"), &root.join("cg"));
    memory::available(&root.join("proc"));
}

fn make() -> TempDir {
    let memory = PathBuf::from("/dev/shm");
    let root = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.expect("a directory");
    for dir in ["proc/self", "cg/a", "cg/memory"] {
        fs::create_dir_all(root.path().join(dir)).expect("it is ours");
    }
    root
}

//! Host memory of a process tree, as `/proc` counts it.

use crate::{process::ProcId, units::Bytes};
use std::fs;

/// The proportional set size of every process: a page that n of them share counts 1/n for each, so shared weights and
/// libraries count once (proc_pid_smaps(5), `smaps_rollup`). A process whose map may not be read counts with its
/// resident pages. The kernel walks page tables for this: tens of milliseconds for a process of many gigabytes.
pub(super) fn proportional(tree: &[ProcId]) -> Bytes {
    tree.iter().map(|id| rollup_pss(id.pid).unwrap_or_else(|| resident_of(id.pid))).sum()
}

/// Resident pages by the kernel's own counters (proc_pid_statm(5)); a page shared by n processes counts n times.
pub(super) fn resident(tree: &[ProcId]) -> Bytes {
    tree.iter().map(|id| resident_of(id.pid)).sum()
}

/// As [`proportional`], without pages of files: the kernel drops those by itself.
pub(super) fn kept(tree: &[ProcId]) -> Bytes {
    tree.iter().map(|id| rollup(id.pid, &["Pss_Anon:", "Pss_Shmem:"]).unwrap_or_default()).sum()
}

fn rollup_pss(pid: i32) -> Option<Bytes> {
    rollup(pid, &["Pss:"])
}

/// The sum of these lines of `smaps_rollup`; nothing where it may not be read. `Pss_Anon` and `Pss_Shmem` came with Linux 5.4.
fn rollup(pid: i32, keys: &[&str]) -> Option<Bytes> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let kib = |key: &&str| -> Option<u64> {
        let line = rollup.lines().find_map(|line| line.strip_prefix(*key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let sum: Option<u64> = keys.iter().map(kib).sum();
    sum.map(|kib| Bytes(kib << 10))
}

fn resident_of(pid: i32) -> Bytes {
    let pages = fs::read_to_string(format!("/proc/{pid}/statm")).ok();
    let pages = pages.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    Bytes(pages.unwrap_or(0).saturating_mul(procfs::page_size()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::ProcFs;

    #[test]
    fn this_process_takes_memory_and_a_dead_one_none() {
        let me = ProcFs::default().stat(std::process::id() as i32).expect("/proc is mounted").id;
        assert!(proportional(&[me]) > Bytes::mib(1));
        assert!(resident(&[me]) >= proportional(&[me]).saturating_sub(Bytes::mib(1)));
        assert!(kept(&[me]) > Bytes(0) && kept(&[me]) <= proportional(&[me]));
        assert_eq!(proportional(&[ProcId { pid: i32::MAX, start: 1 }]), Bytes(0));
    }
}

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

fn rollup_pss(pid: i32) -> Option<Bytes> {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Bytes(kib << 10))
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
        assert_eq!(proportional(&[ProcId { pid: i32::MAX, start: 1 }]), Bytes(0));
    }
}

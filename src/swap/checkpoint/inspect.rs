//! What the driver would refuse, or take and not give back, as far as it can be seen from outside.
//!
//! Seen on an H200 with driver 580.159:
//!
//! | the process | lock | checkpoint | restore | seen from outside by |
//! | --- | --- | --- | --- | --- |
//! | has managed memory (UVM) | ok | refused, 801, the process unharmed | | a mapping of `/dev/nvidia-uvm` beyond the driver's own 2 MiB |
//! | maps another's memory by legacy IPC | ok | **ok** | refused, 1, lost | nothing |
//! | imported another's memory by descriptor | ok | **ok** | refused, 801, lost | nothing |
//! | exported memory, of either kind | ok | ok | ok | for a descriptor, one more open `/dev/nvidiactl` |
//!
//! Descriptors, mappings and NVML's bytes of an importer are those of any CUDA process. What can be seen is that it
//! has company: memory is imported from another process, so an engine with one CUDA process is safe, and one with
//! several may not be.

use std::fs;

/// The driver's own mapping of `/dev/nvidia-uvm` in every CUDA process, in bytes.
const DRIVERS_OWN: u64 = 2 << 20;

/// Refuses an engine of several CUDA processes: what one has imported from another, a restore cannot bring back, and
/// with it the process is lost.
///
/// # Errors
/// The reason, for more than one process.
pub fn shares(pids: &[i32]) -> Result<(), String> {
    if pids.len() < 2 {
        return Ok(());
    }
    Err(format!(
        "{} of its processes hold CUDA state; memory that one shares with another (NCCL and custom all-reduce do) is \
         checkpointed but cannot be restored. If they share none, say swap = [\"checkpoint\"]",
        pids.len()
    ))
}

/// Refuses an engine with managed memory, which the driver does not checkpoint.
///
/// # Errors
/// The reason, with the process and the bytes.
pub fn managed(pids: &[i32]) -> Result<(), String> {
    for &pid in pids {
        // A process that is gone, or another user's, holds nothing that could be seen here.
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        let bytes = managed_in(&maps);
        if bytes > 0 {
            return Err(format!(
                "process {pid} has {} of managed memory (cudaMallocManaged), which the driver cannot checkpoint",
                crate::units::Bytes(bytes)
            ));
        }
    }
    Ok(())
}

/// Bytes of managed memory in a process's `/proc/PID/maps`.
fn managed_in(maps: &str) -> u64 {
    let mapped = |line: &str| {
        let (start, end) = line.split_whitespace().next()?.split_once('-')?;
        Some(u64::from_str_radix(end, 16).ok()? - u64::from_str_radix(start, 16).ok()?)
    };
    let lines = maps.lines().filter(|line| line.ends_with("/dev/nvidia-uvm"));
    lines.filter_map(mapped).sum::<u64>().saturating_sub(DRIVERS_OWN)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: &str = "\
200200000-200400000 rw-s 00200000 00:06 338   /dev/nvidia-uvm
7f1c00000000-7f1c00200000 rw-s 00000000 00:06 340   /dev/nvidiactl
";

    #[test]
    fn the_drivers_own_mapping_is_not_managed_memory() {
        assert_eq!(managed_in(PLAIN), 0);
        assert_eq!(managed_in(""), 0);
    }

    #[test]
    fn a_further_mapping_is() {
        let maps =
            format!("{PLAIN}7f0000000000-7f0010000000 rw-s 7f0000000000 00:06 338   /dev/nvidia-uvm\n");
        assert_eq!(managed_in(&maps), 256 << 20);
    }

    #[test]
    fn company_is_refused() {
        assert!(shares(&[1]).is_ok());
        assert!(shares(&[1, 2]).unwrap_err().starts_with("2 of its processes"));
    }
}

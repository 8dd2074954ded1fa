//! A placement made ready for the moment between fork and exec.
//!
//! In the forked child of a program with threads only async-signal-safe calls may be made
//! (signal-safety(7)); hwloc's allocate. So the masks are laid out here beforehand, and the child makes two
//! plain system calls on them: sched_setaffinity(2) and set_mempolicy(2). Both are inherited by everything the
//! engine starts, and survive its exec.

use std::io;

use super::place::{MemoryPolicy, Placement};

/// `MPOL_PREFERRED_MANY` of linux/mempolicy.h (Linux 5.15), which `libc` does not name.
const MPOL_PREFERRED_MANY: libc::c_int = 5;

/// Which of the two calls failed, and why.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// sched_setaffinity(2).
    #[error("cannot bind to the cores: {0}")]
    Cores(#[source] io::Error),
    /// set_mempolicy(2).
    #[error("cannot bind memory to the NUMA nodes: {0}")]
    Memory(#[source] io::Error),
}

/// Masks in the kernel's layout, for the child to apply to itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    cpus: Vec<usize>,
    nodes: Vec<usize>,
    /// `None`: memory is left as it is.
    mode: Option<libc::c_int>,
}

impl Binding {
    /// Lays the masks out. `this_system` is [`View::this_system`](super::View::this_system): of another
    /// machine's description nothing is bound, and `None` comes back.
    pub fn prepare(placement: &Placement, this_system: bool) -> Option<Self> {
        let mode = match placement.memory {
            MemoryPolicy::Free => None,
            MemoryPolicy::Prefer => Some(MPOL_PREFERRED_MANY),
            MemoryPolicy::Bind => Some(libc::MPOL_BIND),
        };
        let cpus = placement.cpus.words().to_vec();
        let nodes = placement.memory_nodes.words().to_vec();
        this_system.then_some(Self { cpus, nodes, mode })
    }

    /// Binds the calling thread, and through it whatever it starts. Safe between fork and exec: it neither
    /// allocates nor locks.
    ///
    /// # Errors
    /// [`BindError`]; `EINVAL` when the job's cpuset has none of the cores or nodes any more. A kernel that
    /// has no NUMA support, does not know `MPOL_PREFERRED_MANY` (before 5.15) or lets nobody choose (a container) leaves
    /// memory as it is.
    pub fn apply(&self) -> Result<(), BindError> {
        if !self.cpus.is_empty() {
            let size = std::mem::size_of_val(self.cpus.as_slice());
            // SAFETY: the kernel reads `size` bytes of a slice that is `size` bytes long; 0 is this thread.
            let done = unsafe { libc::syscall(libc::SYS_sched_setaffinity, 0, size, self.cpus.as_ptr()) };
            if done < 0 {
                return Err(BindError::Cores(io::Error::last_os_error()));
            }
        }
        let Some(mode) = self.mode else { return Ok(()) };
        // The kernel reads one bit less than it is told (set_mempolicy(2), BUGS).
        let bits = self.nodes.len() * usize::BITS as usize + 1;
        // SAFETY: the kernel reads `bits - 1` bits, which is the whole slice.
        let done = unsafe { libc::syscall(libc::SYS_set_mempolicy, mode, self.nodes.as_ptr(), bits) };
        if done == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            // EPERM: a container whose seccomp profile has no NUMA calls; `doctor` warns.
            Some(libc::ENOSYS | libc::EPERM) => Ok(()),
            Some(libc::EINVAL) if mode == MPOL_PREFERRED_MANY => Ok(()),
            _ => Err(BindError::Memory(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Mask;

    fn placement(cpus: &str, nodes: &str, memory: MemoryPolicy) -> Placement {
        let mask = |list: &str| list.parse::<Mask>().expect("a list");
        Placement {
            cpus: mask(cpus),
            memory_nodes: mask(nodes),
            memory,
            gpus: Vec::new(),
            reason: String::new(),
        }
    }

    fn status_of_a_bound_thread(binding: Binding) -> Result<String, BindError> {
        let bound = std::thread::spawn(move || {
            binding.apply()?;
            Ok(std::fs::read_to_string("/proc/thread-self/status").expect("readable"))
        });
        bound.join().expect("no panic")
    }

    #[test]
    fn nothing_is_bound_to_another_machines_cores() {
        assert_eq!(Binding::prepare(&placement("0-255", "7", MemoryPolicy::Bind), false), None);
    }

    #[test]
    fn a_thread_is_bound_to_its_cores() {
        let first = rustix::thread::sched_getaffinity(None).expect("readable");
        let first = (0..1024).find(|&cpu| first.is_set(cpu)).expect("one core at least");
        let binding = Binding::prepare(&placement(&first.to_string(), "0", MemoryPolicy::Free), true);
        let status = status_of_a_bound_thread(binding.expect("this system")).expect("binds");
        assert!(status.contains(&format!("Cpus_allowed_list:\t{first}\n")), "{status}");
    }

    #[test]
    fn cores_that_are_not_there_are_an_error() {
        let binding = Binding::prepare(&placement("60000", "0", MemoryPolicy::Free), true);
        let error = status_of_a_bound_thread(binding.expect("this system")).expect_err("no such core");
        assert!(matches!(error, BindError::Cores(_)), "{error}");
    }

    #[test]
    fn memory_can_be_bound_to_the_first_node() {
        let cpus = std::fs::read_to_string("/proc/self/status").expect("readable");
        let cpus = cpus.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).expect("a list");
        for policy in [MemoryPolicy::Bind, MemoryPolicy::Prefer] {
            let binding = Binding::prepare(&placement(cpus, "0", policy), true).expect("this system");
            status_of_a_bound_thread(binding).expect("binds");
        }
    }
}

//! What was found of cores, nodes and GPUs, and whether engines can be bound to them.

use std::io;

use super::discover::TopologyError;
use super::place::Allowed;
use super::view::View;
use crate::observe::Finding;

/// What of the topology weakens the binding of engines, and what does not.
pub fn doctor(view: &Result<View, TopologyError>, allowed: &Allowed) -> Vec<Finding> {
    let view = match view {
        Ok(view) => view,
        Err(error) => {
            let remedy = "see what `lstopo` shows; unset HWLOC_XMLFILE, HWLOC_SYNTHETIC and HWLOC_COMPONENTS";
            return vec![Finding::fail("topology", error.to_string(), remedy)];
        }
    };
    vec![topology(view), cores(view, allowed), memory(view, allowed, can_bind_memory())]
}

fn topology(view: &View) -> Finding {
    let what = format!(
        "{} cores, {} NUMA node(s), {} GPU(s) on the bus, by hwloc from {}",
        view.cores.len(),
        view.nodes.len(),
        view.gpus.len(),
        view.source
    );
    if view.this_system {
        return Finding::ok("topology", what);
    }
    let remedy = "unset HWLOC_XMLFILE and HWLOC_SYNTHETIC";
    Finding::warn("topology", format!("{what}: not this machine, so nothing is bound"), remedy)
}

fn cores(view: &View, allowed: &Allowed) -> Finding {
    let mine = view.cpus().and(&allowed.cpus);
    let what = format!("logical processors {mine} are the job's");
    if allowed.cpus.is_empty() || mine == allowed.cpus {
        return Finding::ok("cores", what);
    }
    let what = format!("the job may run on {}, of which hwloc shows {mine} only", allowed.cpus);
    Finding::warn("cores", what, "see what `lstopo` shows; engines are bound to what it knows")
}

fn memory(view: &View, allowed: &Allowed, can_bind: io::Result<()>) -> Finding {
    if view.nodes.len() <= 1 {
        return Finding::ok("memory binding", "one NUMA node: there is nothing to bind to");
    }
    match can_bind {
        Ok(()) => {
            let nodes = view.node_mask().and(&allowed.nodes);
            Finding::ok("memory binding", format!("memory can be bound to nodes {nodes}"))
        }
        Err(error) => Finding::warn(
            "memory binding",
            format!(
                "the kernel refuses memory policies ({error}): engines' memory may lie far from their GPUs"
            ),
            "in a container, allow set_mempolicy, get_mempolicy and mbind (its seccomp profile)",
        ),
    }
}

/// Asks for this thread's policy, which the same rules allow or refuse.
fn can_bind_memory() -> io::Result<()> {
    let mut mode: libc::c_int = 0;
    let nobody = std::ptr::null_mut::<libc::c_ulong>();
    // SAFETY: `mode` outlives the call, and no mask or address is asked about.
    let done = unsafe { libc::syscall(libc::SYS_get_mempolicy, &mut mode, nobody, 0usize, 0usize, 0usize) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::super::discover::{Source, discover};
    use super::*;
    use crate::observe::Verdict;

    #[test]
    fn no_hwloc_objects_is_a_failure_with_a_remedy() {
        let none = Err(TopologyError::NoObjects { from: "this machine".into(), missing: "cores" });
        let findings = doctor(&none, &Allowed::default());
        assert_eq!(findings[0].verdict, Verdict::Fail);
        assert!(findings[0].what.contains("found no cores"), "{}", findings[0].what);
    }

    #[test]
    fn another_machines_description_is_named() {
        let view = discover(&Source::Synthetic("node:2 core:2 pu:1".into())).expect("reads");
        let allowed = Allowed { cpus: "0-9".parse().expect("a list"), ..Allowed::default() };
        assert_eq!(
            memory(&view, &allowed, Err(io::Error::from_raw_os_error(libc::EPERM))).verdict,
            Verdict::Warn
        );
        let findings = doctor(&Ok(view), &allowed);
        assert!(findings[0].what.contains("not this machine"), "{}", findings[0].what);
        assert!(findings[1].what.contains("0-3 only"), "{}", findings[1].what);
    }
}

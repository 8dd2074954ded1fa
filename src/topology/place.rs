//! Which cores and which memory each engine gets. Pure: the same machine and job give the same answer.
//!
//! An engine with GPUs gets the allowed cores of its GPUs' NUMA nodes, and their memory. Engines of one node
//! share its cores: those that are swapped out use none. An engine without GPUs gets its share of the allowed
//! cores, in neighbouring whole cores, so that engines that run at once do not fight for one. Nothing outside
//! the job's own cores and nodes is ever used.

use serde::Serialize;

use super::mask::Mask;
use super::view::{PciId, View};
use crate::units::Bytes;

/// What the job may use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// Logical processors: the affinity mask.
    pub cpus: Mask,
    /// NUMA nodes: `Mems_allowed_list` of `/proc/self/status`.
    pub nodes: Mask,
    /// The job's memory limit, where it has one.
    pub memory: Option<Bytes>,
}

/// One engine that wants a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Its GPUs; empty for an engine on the CPU.
    pub gpus: Vec<PciId>,
}

/// How strictly memory is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPolicy {
    /// Not at all: there is nothing to choose between.
    Free,
    /// These nodes while they have room, then others (`MPOL_PREFERRED_MANY`): for a job that may use more
    /// memory than the nodes have, which a strict binding would have killed.
    Prefer,
    /// These nodes only (`MPOL_BIND`).
    Bind,
}

/// Where an engine goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Placement {
    /// Its logical processors.
    pub cpus: Mask,
    /// Its NUMA nodes.
    pub memory_nodes: Mask,
    /// How strictly memory is bound to them.
    pub memory: MemoryPolicy,
    /// Its GPUs.
    pub gpus: Vec<PciId>,
    /// Why, in one line for people.
    pub reason: String,
}

/// Places every engine, in order. `at_once` is how many engines without GPUs run at the same time: the cores
/// are divided among so many.
pub fn place(view: &View, allowed: &Allowed, requests: &[Request], at_once: usize) -> Vec<Placement> {
    let usable = Usable::of(view, allowed);
    let on_cpu = requests.iter().filter(|request| request.gpus.is_empty()).count();
    let shares = usable.shares(at_once.clamp(1, on_cpu.max(1)));
    let mut next = (0..shares.len()).cycle();
    requests
        .iter()
        .map(|request| match request.gpus.as_slice() {
            [] => {
                let share = next.next().unwrap_or(0);
                usable.on_cpu(&shares[share], share, shares.len())
            }
            gpus => usable.near(gpus),
        })
        .collect()
}

/// The machine, cut down to what the job may use.
struct Usable<'a> {
    view: &'a View,
    cpus: Mask,
    nodes: Mask,
    memory: Option<Bytes>,
}

impl<'a> Usable<'a> {
    fn of(view: &'a View, allowed: &Allowed) -> Self {
        // A job that says nothing about cores or nodes may use all there are.
        let cut = |all: Mask, allowed: &Mask| {
            let cut = all.and(allowed);
            if cut.is_empty() { all } else { cut }
        };
        let cpus = cut(view.cpus(), &allowed.cpus);
        let nodes = cut(view.node_mask(), &allowed.nodes);
        Self { view, cpus, nodes, memory: allowed.memory }
    }

    /// The cores in `count` even parts; the same whole set for each when there are fewer cores than parts.
    fn shares(&self, count: usize) -> Vec<Mask> {
        let cores: Vec<Mask> = self
            .view
            .cores
            .iter()
            .map(|core| core.cpus.and(&self.cpus))
            .filter(|cpus| !cpus.is_empty())
            .collect();
        if cores.len() < count {
            return vec![self.cpus.clone()];
        }
        (0..count)
            .map(|part| {
                let part = &cores[part * cores.len() / count..(part + 1) * cores.len() / count];
                part.iter().flat_map(Mask::iter).collect()
            })
            .collect()
    }

    fn on_cpu(&self, share: &Mask, index: usize, shares: usize) -> Placement {
        let reason = match shares {
            1 => "no GPU: all the job's cores".to_owned(),
            _ => format!("no GPU: share {} of {shares} of the job's cores", index + 1),
        };
        self.finish(share.clone(), Vec::new(), reason)
    }

    fn near(&self, gpus: &[PciId]) -> Placement {
        let known: Vec<_> = gpus.iter().filter_map(|&pci| self.view.gpu(pci)).collect();
        let near: Mask = known.iter().flat_map(|gpu| gpu.cpus.iter()).collect();
        let nodes: Mask = known.iter().flat_map(|gpu| gpu.nodes.iter()).collect();
        let names = gpus.iter().map(PciId::to_string).collect::<Vec<_>>().join(", ");
        let cpus = near.and(&self.cpus);
        if known.len() < gpus.len() {
            let reason = format!("hwloc does not show GPU {names}: all the job's cores");
            return self.finish(self.cpus.clone(), gpus.to_vec(), reason);
        }
        if cpus.is_empty() {
            let reason = format!(
                "GPU {names} is at NUMA node {nodes}, where the job has no core: all the job's cores, farther away"
            );
            return self.finish(self.cpus.clone(), gpus.to_vec(), reason);
        }
        let reason = format!("cores of NUMA node {nodes}, where GPU {names} is");
        self.finish(cpus, gpus.to_vec(), reason)
    }

    fn finish(&self, cpus: Mask, gpus: Vec<PciId>, reason: String) -> Placement {
        let near = self.view.nodes_of(&cpus).and(&self.nodes);
        let memory_nodes = if near.is_empty() { self.nodes.clone() } else { near };
        let room: Bytes = self
            .view
            .nodes
            .iter()
            .filter(|node| memory_nodes.contains(node.index))
            .map(|node| node.memory)
            .sum();
        let fits = self.memory.is_none_or(|limit| limit <= room);
        let (memory, about) = match () {
            () if self.view.nodes.len() <= 1 => {
                (MemoryPolicy::Free, "; one NUMA node, memory is free".to_owned())
            }
            () if memory_nodes == self.nodes => {
                (MemoryPolicy::Free, "; memory from all the job's nodes".to_owned())
            }
            () if fits => (MemoryPolicy::Bind, format!("; memory bound to node {memory_nodes}")),
            () => (
                MemoryPolicy::Prefer,
                format!("; memory of node {memory_nodes} first, because the job may use more than it has"),
            ),
        };
        Placement { cpus, memory_nodes, memory, gpus, reason: reason + &about }
    }
}

#[cfg(test)]
mod tests {
    use super::super::discover::{Source, discover};
    use super::*;

    fn mask(list: &str) -> Mask {
        list.parse().expect("a list")
    }

    fn machine(name: &str) -> View {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topology").join(name);
        discover(&Source::Xml(path)).expect("reads")
    }

    fn synthetic(words: &str) -> View {
        discover(&Source::Synthetic(words.into())).expect("reads")
    }

    fn with_gpus(gpus: &[PciId]) -> Request {
        Request { gpus: gpus.to_vec() }
    }

    fn on_cpu(count: usize) -> Vec<Request> {
        vec![Request { gpus: Vec::new() }; count]
    }

    #[test]
    fn a_gpu_engine_gets_the_cores_and_memory_of_its_gpus_node() {
        let view = machine("dgxa100.xml");
        let allowed = Allowed { cpus: mask("0-255"), nodes: mask("0-7"), memory: None };
        let requests: Vec<_> = view.gpus.iter().map(|gpu| with_gpus(&[gpu.pci])).collect();
        let placed = place(&view, &allowed, &requests, 1);
        assert_eq!(
            (placed[0].cpus.to_string().as_str(), placed[0].memory_nodes.to_string().as_str()),
            ("48-63,176-191", "3")
        );
        assert_eq!(placed[4].memory_nodes, mask("7"));
        assert!(placed.iter().all(|placement| placement.memory == MemoryPolicy::Bind));
        assert!(placed[0].reason.contains("NUMA node 3"), "{}", placed[0].reason);
    }

    #[test]
    fn two_gpus_on_two_nodes_take_both() {
        let view = machine("dgxa100.xml");
        let allowed = Allowed { cpus: mask("0-127"), nodes: mask("0-7"), memory: None };
        let placed = place(&view, &allowed, &[with_gpus(&[view.gpus[1].pci, view.gpus[2].pci])], 1);
        assert_eq!(
            (placed[0].cpus.to_string(), placed[0].memory_nodes.to_string()),
            ("16-31,48-63".into(), "1,3".into())
        );
    }

    #[test]
    fn nothing_outside_the_job_is_used() {
        let view = machine("dgxa100.xml");
        let allowed = Allowed { cpus: mask("48-51"), nodes: mask("3"), memory: None };
        let requests =
            [with_gpus(&[view.gpus[0].pci]), with_gpus(&[view.gpus[4].pci]), Request { gpus: vec![] }];
        for placement in place(&view, &allowed, &requests, 1) {
            assert_eq!((placement.cpus.clone(), placement.memory_nodes.clone()), (mask("48-51"), mask("3")));
            assert!(placement.memory == MemoryPolicy::Free, "the cpuset allows that node only");
        }
        let far = &place(&view, &allowed, &requests, 1)[1];
        assert!(far.reason.contains("has no core"), "{}", far.reason);
    }

    #[test]
    fn memory_is_only_preferred_where_the_node_is_smaller_than_the_job() {
        let view = machine("dgxa100.xml");
        let allowed = |memory| Allowed { cpus: mask("0-255"), nodes: mask("0-7"), memory: Some(memory) };
        let request = [with_gpus(&[view.gpus[0].pci])];
        assert_eq!(place(&view, &allowed(Bytes::gib(120)), &request, 1)[0].memory, MemoryPolicy::Bind);
        assert_eq!(place(&view, &allowed(Bytes::gib(500)), &request, 1)[0].memory, MemoryPolicy::Prefer);
    }

    #[test]
    fn cpu_engines_divide_the_cores_that_run_at_once() {
        let view = synthetic("node:2 core:4 pu:2");
        let allowed = Allowed { cpus: mask("0-15"), nodes: mask("0-1"), memory: None };
        let cpus = |engines, at_once| -> Vec<String> {
            place(&view, &allowed, &on_cpu(engines), at_once).iter().map(|p| p.cpus.to_string()).collect()
        };
        assert_eq!(cpus(1, 1), ["0-15"]);
        assert_eq!(cpus(3, 1), ["0-15", "0-15", "0-15"]);
        assert_eq!(cpus(2, 2), ["0-7", "8-15"]);
        assert_eq!(cpus(3, 8), ["0-3", "4-9", "10-15"]);
        assert_eq!(cpus(9, 9), ["0-15"; 9], "fewer cores than engines");
        let halves = place(&view, &allowed, &on_cpu(2), 2);
        assert_eq!(
            (halves[1].memory_nodes.to_string().as_str(), halves[1].memory),
            ("1", MemoryPolicy::Bind)
        );
    }

    #[test]
    fn one_node_or_an_unknown_gpu_is_fine() {
        let view = synthetic("core:4 pu:1");
        let placed =
            place(&view, &Allowed::default(), &[with_gpus(&["b7:00.0".parse().expect("an address")])], 1);
        assert_eq!((placed[0].cpus.clone(), placed[0].memory), (mask("0-3"), MemoryPolicy::Free));
        assert!(placed[0].reason.contains("does not show GPU 0000:b7:00.0"), "{}", placed[0].reason);
        assert!(placed[0].reason.contains("one NUMA node"), "{}", placed[0].reason);
    }
}

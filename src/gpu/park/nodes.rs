//! How the pool is divided among the NUMA nodes of the job's GPUs. Pure.
//!
//! A copy from and to a GPU's own node does not cross the link between sockets. So each node with GPUs gets a part of the
//! pool, as large as its share of the GPUs; what goes out of a GPU goes to its node's part while that has room.
//!
//! ```text
//!  daemon      hwloc ──▶ node of each GPU of the machine ──▶ SWAPSERVE_PARK_NODES of every gpu server
//!  gpu server  its own GPUs among them ──▶ division of the segments, the same each time:
//!
//!              segments  0 1 2 3 4 5 6 7 8 │ 9 10 11       GPUs 0, 1 and 2 are on node 0, GPU 3 is on node 1
//!                        node 0            │ node 1
//! ```
//!
//! A gpu server is started before anybody has asked the driver which GPUs the job has; therefore it is told of all of the
//! machine's. Slots keep their numbers whatever the division is: a book that was written under another one is as true.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use super::setup::SEGMENT;
use crate::topology::PciId;
use crate::units::Bytes;

/// The NUMA node of each GPU of this machine, by its place on the bus. A GPU that is not in it has no preference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuNodes(BTreeMap<PciId, u32>);

impl GpuNodes {
    /// These.
    pub fn new(nodes: BTreeMap<PciId, u32>) -> Self {
        Self(nodes)
    }

    /// The nodes of these GPUs, in their order.
    pub fn of(&self, gpus: &[Option<PciId>]) -> Vec<Option<u32>> {
        gpus.iter().map(|gpu| self.0.get(gpu.as_ref()?).copied()).collect()
    }

    /// Reads what [`fmt::Display`] has written; what is not understood is left out.
    pub fn read(text: &str) -> Self {
        let entry = |word: &str| {
            let (gpu, node) = word.split_once('=')?;
            Some((gpu.parse().ok()?, node.parse().ok()?))
        };
        Self(text.split_ascii_whitespace().filter_map(entry).collect())
    }
}

impl fmt::Display for GpuNodes {
    /// `0000:07:00.0=3 0000:0f:00.0=3`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (gpu, node)) in self.0.iter().enumerate() {
            write!(f, "{}{gpu}={node}", if at == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

/// A node's part of the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The node, by the kernel's number.
    pub node: u32,
    /// Its segments; none where there are fewer than nodes.
    pub segments: Range<u32>,
}

/// The pool's segments, divided among NUMA nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Division {
    segments: u32,
    /// By node, one after the other: all of the pool, or nothing if no node is known.
    parts: Vec<Part>,
    /// Each GPU's node.
    gpus: Vec<Option<u32>>,
}

impl Division {
    /// Divides so many segments among the nodes of these GPUs, in proportion to how many GPUs each has, to a segment; but
    /// none goes without while another has two.
    pub fn new(segments: u32, gpus: &[Option<u32>]) -> Self {
        let mut counts: BTreeMap<u32, u64> = BTreeMap::new();
        gpus.iter().flatten().for_each(|node| *counts.entry(*node).or_default() += 1);
        let mut begin = 0;
        let shares = shares(segments, &counts.values().copied().collect::<Vec<_>>());
        let parts = counts.keys().zip(shares).map(|(node, share)| {
            let segments = begin..begin + share;
            begin = segments.end;
            Part { node: *node, segments }
        });
        Self { segments, parts: parts.collect(), gpus: gpus.to_vec() }
    }

    /// Every node's part.
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// The segments next to a GPU, by its ordinal; none for one that has no preference.
    pub fn near(&self, gpu: usize) -> Range<u32> {
        let node = self.gpus.get(gpu).copied().flatten();
        let part = self.parts.iter().find(|part| Some(part.node) == node);
        part.map_or(0..0, |part| part.segments.clone())
    }

    /// All segments in turns, one of each node: whatever GPU is the first to need room finds some that is near.
    pub fn in_turns(&self) -> Vec<u32> {
        let mut all: Vec<u32> = (0..self.segments).collect();
        let turn = |segment: &u32| {
            let part = self.parts.iter().find(|part| part.segments.contains(segment));
            segment - part.map_or(0, |part| part.segments.start)
        };
        // Those of one turn stay in the nodes' order.
        all.sort_by_key(turn);
        all
    }
}

impl fmt::Display for Division {
    /// `32.0 GiB: 24.0 GiB on NUMA node 0, 8.0 GiB on node 1`; the size alone where nothing is divided.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = |segments: u32| Bytes(u64::from(segments) * SEGMENT);
        write!(f, "{}", bytes(self.segments))?;
        for (at, part) in self.parts.iter().enumerate() {
            let (before, numa) = if at == 0 { (":", "NUMA ") } else { (",", "") };
            write!(f, "{before} {} on {numa}node {}", bytes(part.segments.len() as u32), part.node)?;
        }
        Ok(())
    }
}

/// So many segments in proportion to these counts: whole quotas first, then the largest remainders.
fn shares(segments: u32, counts: &[u64]) -> Vec<u32> {
    let total = counts.iter().sum::<u64>().max(1);
    let quota = |at: usize| u64::from(segments) * counts[at];
    let mut shares: Vec<u32> = (0..counts.len()).map(|at| (quota(at) / total) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..counts.len()).collect();
    by_remainder.sort_by_key(|at| Reverse(quota(*at) % total));
    let left = segments - shares.iter().sum::<u32>();
    by_remainder.iter().take(left as usize).for_each(|at| shares[*at] += 1);
    while let Some(none) = shares.iter().position(|share| *share == 0) {
        let most = (0..shares.len()).max_by_key(|at| (shares[*at], Reverse(counts[*at])));
        let Some(most) = most.filter(|most| shares[*most] > 1) else { break };
        shares[most] -= 1;
        shares[none] += 1;
    }
    shares
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Source, View, discover};
    use proptest::prelude::*;

    fn machine(name: &str) -> View {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topology").join(name);
        discover(&Source::Xml(path)).expect("reads")
    }

    /// What a gpu server makes of a pool of so many segments and these GPUs of a recorded machine.
    fn handed_over(view: &View, gpus: &[usize], segments: u32) -> Division {
        let told = GpuNodes::new(view.gpu_nodes()).to_string();
        let gpus: Vec<_> = gpus.iter().map(|gpu| Some(view.gpus[*gpu].pci)).collect();
        Division::new(segments, &GpuNodes::read(&told).of(&gpus))
    }

    #[test]
    fn recorded_machines_divide_their_pools() {
        let view = machine("hgxh100.xml");
        let all = handed_over(&view, &[0, 1, 2, 3, 4, 5, 6, 7], 128);
        assert_eq!(all.to_string(), "32.0 GiB: 16.0 GiB on NUMA node 0, 16.0 GiB on node 1");
        assert_eq!((all.near(0), all.near(7)), (0..64, 64..128));
        // In whatever order the job has them.
        let some = handed_over(&view, &[6, 0, 5, 7], 12);
        assert_eq!(some.to_string(), "3.0 GiB: 768.0 MiB on NUMA node 0, 2.2 GiB on node 1");
        assert_eq!([0, 1, 2, 3].map(|gpu| some.near(gpu)), [3..12, 0..3, 3..12, 3..12]);

        let view = machine("dgxa100.xml");
        let all = handed_over(&view, &[0, 1, 2, 3, 4, 5, 6, 7], 128);
        let nodes: Vec<u32> = all.parts().iter().map(|part| part.node).collect();
        assert_eq!(nodes, [1, 3, 5, 7]);
        assert_eq!(all.near(0), 32..64, "it is on node 3");
        assert_eq!(handed_over(&view, &[4], 8).to_string(), "2.0 GiB: 2.0 GiB on NUMA node 7");
    }

    #[test]
    fn a_gpu_of_unknown_node_has_no_preference() {
        let division = Division::new(8, &[None, Some(1), None]);
        assert_eq!((division.near(0), division.near(1), division.near(9)), (0..0, 0..8, 0..0));
        let none = Division::new(8, &[None, None]);
        assert_eq!((none.parts(), none.near(1), none.to_string().as_str()), (&[][..], 0..0, "2.0 GiB"));
    }

    #[test]
    fn what_is_told_of_gpus_is_read_again() {
        let told = "0000:07:00.0=3 0000:b7:00.0=0";
        assert_eq!(GpuNodes::read(told).to_string(), told);
        assert_eq!(GpuNodes::read("0000:07:00.0=3 nonsense b7:00.0=x"), GpuNodes::read("07:00.0=3"));
        assert_eq!(GpuNodes::read(""), GpuNodes::default());
    }

    #[test]
    fn no_node_goes_without_while_another_has_two() {
        assert_eq!(shares(4, &[1, 1, 1, 7]), [1, 1, 1, 1]);
        assert_eq!(shares(5, &[1, 1, 1, 7]), [1, 1, 1, 2]);
        assert_eq!(shares(2, &[1, 1, 1]), [1, 1, 0]);
        assert_eq!(shares(7, &[2, 2]), [4, 3]);
        assert_eq!(shares(7, &[]), [0; 0]);
    }

    #[test]
    fn the_nodes_take_turns() {
        let uneven = Division::new(6, &[Some(2), Some(5), Some(2)]);
        assert_eq!(uneven.in_turns(), [0, 4, 1, 5, 2, 3]);
        assert_eq!(Division::new(3, &[None]).in_turns(), [0, 1, 2]);
    }

    proptest! {
        #[test]
        fn a_division_is_whole_and_in_proportion(
            segments in 0u32..4096,
            gpus in prop::collection::vec(prop::option::of(0u32..6), 0..20),
        ) {
            let division = Division::new(segments, &gpus);
            prop_assert_eq!(&division, &Division::new(segments, &gpus));
            let parts = division.parts();
            // One after the other, and all of it.
            let ends: Vec<u32> = parts.iter().map(|part| part.segments.end).collect();
            for (part, before) in parts.iter().zip([0].iter().chain(&ends)) {
                prop_assert_eq!(part.segments.start, *before);
            }
            prop_assert!(parts.is_sorted_by(|one, next| one.node < next.node));
            let known = gpus.iter().flatten().count() as u32;
            prop_assert_eq!(ends.last().copied(), (known > 0).then_some(segments));
            let count = |part: &Part| gpus.iter().filter(|node| **node == Some(part.node)).count() as u32;
            let each_has_a_quota = parts.iter().all(|part| segments * count(part) >= known);
            for part in parts {
                let share = part.segments.len() as u32;
                prop_assert!(share > 0 || segments < parts.len() as u32);
                if each_has_a_quota {
                    prop_assert!((share * known).abs_diff(segments * count(part)) < known, "to a segment");
                }
            }
            for (gpu, node) in gpus.iter().enumerate() {
                let its = parts.iter().find(|part| Some(part.node) == *node);
                prop_assert_eq!(division.near(gpu), its.map_or(0..0, |part| part.segments.clone()));
            }
            let mut order = division.in_turns();
            order.sort_unstable();
            prop_assert_eq!(order, (0..segments).collect::<Vec<_>>());
        }
    }
}

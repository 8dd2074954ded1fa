//! What was found on a machine, as plain data: enough to place engines, and to test that on any machine.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::mask::Mask;
use crate::units::Bytes;

/// A NUMA node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// The kernel's number of it.
    pub index: usize,
    /// Its logical processors.
    pub cpus: Mask,
    /// Its own memory.
    pub memory: Bytes,
}

/// A core, with one logical processor or more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Core {
    /// Its logical processors.
    pub cpus: Mask,
}

/// A GPU, as the PCI bus shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Gpu {
    /// Its place on the bus, by which CUDA and NVML know it too.
    pub pci: PciId,
    /// The logical processors next to it.
    pub cpus: Mask,
    /// The NUMA nodes next to it.
    pub nodes: Mask,
}

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct View {
    /// NUMA nodes, by number. A machine without NUMA has one.
    pub nodes: Vec<Node>,
    /// Cores, in hwloc's order: neighbours share caches.
    pub cores: Vec<Core>,
    /// NVIDIA GPUs, by their place on the bus.
    pub gpus: Vec<Gpu>,
    /// Whether this is the machine the program runs on. Of any other, nothing may be bound.
    pub this_system: bool,
    /// Where it came from, for people.
    pub source: String,
}

impl View {
    /// Every logical processor.
    pub fn cpus(&self) -> Mask {
        self.cores.iter().flat_map(|core| core.cpus.iter()).collect()
    }

    /// Every NUMA node.
    pub fn node_mask(&self) -> Mask {
        self.nodes.iter().map(|node| node.index).collect()
    }

    /// The nodes that these logical processors belong to.
    pub fn nodes_of(&self, cpus: &Mask) -> Mask {
        self.nodes.iter().filter(|node| node.cpus.meets(cpus)).map(|node| node.index).collect()
    }

    /// The GPU at this place on the bus.
    pub fn gpu(&self, pci: PciId) -> Option<&Gpu> {
        self.gpus.iter().find(|gpu| gpu.pci == pci)
    }

    /// The NUMA node next to each GPU, the first of several. Nothing of a GPU that is as near to one node as to any other:
    /// there is nothing to choose.
    pub fn gpu_nodes(&self) -> BTreeMap<PciId, u32> {
        let all = self.node_mask();
        let chosen = self.gpus.iter().filter(|gpu| gpu.nodes != all);
        chosen.filter_map(|gpu| Some((gpu.pci, u32::try_from(gpu.nodes.iter().next()?).ok()?))).collect()
    }
}

/// A place on the PCI bus: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Domain; 0 on most machines.
    pub domain: u32,
    /// Bus.
    pub bus: u8,
    /// Device on the bus.
    pub device: u8,
    /// Function of the device.
    pub function: u8,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

impl Serialize for PciId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Text that names no place on the PCI bus.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address such as 0000:b7:00.0")]
pub struct PciIdError(String);

impl FromStr for PciId {
    type Err = PciIdError;

    /// Reads Linux's form (`0000:b7:00.0`), the short one (`b7:00.0`) and NVML's (`00000000:B7:00.0`).
    fn from_str(text: &str) -> Result<Self, PciIdError> {
        let parse = || {
            let (rest, function) = text.rsplit_once('.')?;
            let mut parts = rest.rsplit(':');
            let device = u8::from_str_radix(parts.next()?, 16).ok()?;
            let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
            let domain = u32::from_str_radix(parts.next().unwrap_or("0"), 16).ok()?;
            let function = u8::from_str_radix(function, 16).ok()?;
            parts.next().is_none().then_some(Self { domain, bus, device, function })
        };
        parse().ok_or_else(|| PciIdError(text.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_next_to_every_node_has_none() {
        let pci = PciId { domain: 0, bus: 7, device: 0, function: 0 };
        let node = |index| Node { index, cpus: Mask::new(), memory: Bytes(0) };
        let near = |nodes: &str, of: &[usize]| {
            let gpu = Gpu { pci, cpus: Mask::new(), nodes: nodes.parse().expect("a list") };
            let nodes = of.iter().copied().map(node).collect();
            let source = String::new();
            View { nodes, cores: Vec::new(), gpus: vec![gpu], this_system: true, source }.gpu_nodes()
        };
        assert_eq!(near("1", &[0, 1]), BTreeMap::from([(pci, 1)]));
        assert_eq!(near("2-3", &[0, 1, 2, 3]), BTreeMap::from([(pci, 2)]), "the first of a socket's");
        assert_eq!(near("0-1", &[0, 1]), BTreeMap::new());
        assert_eq!(near("0", &[0]), BTreeMap::new(), "a machine without NUMA");
        assert_eq!(near("", &[0, 1]), BTreeMap::new());
    }

    #[test]
    fn the_three_spellings_of_a_pci_address_are_one() {
        let expected = PciId { domain: 0, bus: 0xb7, device: 0, function: 0 };
        for text in ["0000:b7:00.0", "b7:00.0", "00000000:B7:00.0"] {
            assert_eq!(text.parse(), Ok(expected));
        }
        assert_eq!(expected.to_string(), "0000:b7:00.0");
        for wrong in ["", "b7:00", "0:0:b7:00.0", "GPU-1234", "zz:00.0"] {
            assert!(wrong.parse::<PciId>().is_err(), "{wrong}");
        }
    }
}

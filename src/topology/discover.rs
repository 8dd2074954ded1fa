//! Asks hwloc. This file is its only user.

use std::path::PathBuf;

use hwlocality::Topology;
use hwlocality::object::TopologyObject;
use hwlocality::object::attributes::ObjectAttributes;
use hwlocality::object::types::ObjectType;
use hwlocality::topology::builder::{TopologyBuilder, TypeFilter};

use super::mask::Mask;
use super::view::{Core, Gpu, Node, PciId, View};
use crate::units::Bytes;

/// NVIDIA's PCI vendor number.
const NVIDIA: u16 = 0x10de;
/// PCI base class of display controllers: VGA (0x0300) and 3D (0x0302), which is what data-centre GPUs are.
const DISPLAY: u16 = 0x03;

/// Which machine to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The one this runs on; what the job's cpuset hides is not seen. `HWLOC_XMLFILE` and `HWLOC_SYNTHETIC`
    /// are hwloc's own and replace it.
    System,
    /// A file written by `lstopo machine.xml`.
    Xml(PathBuf),
    /// A synthetic one in hwloc's words, such as `node:2 core:4 pu:1`.
    Synthetic(String),
}

/// Why a machine could not be described.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// hwloc did not read it.
    #[error("hwloc cannot describe {from}: {why}; {hint}")]
    Unreadable {
        /// What was looked at.
        from: String,
        /// What hwloc said.
        why: String,
        /// What to do.
        hint: &'static str,
    },
    /// hwloc answered with another machine than was asked for, as it does when a file is not understood.
    #[error("hwloc did not understand {from} and described this machine instead; check it with `lstopo -i`")]
    Ignored {
        /// What was looked at.
        from: String,
    },
    /// hwloc found nothing to place engines on.
    #[error(
        "hwloc found no {missing} in {from}: no engine can be placed; check that /sys is mounted and what `lstopo` \
         shows, or unset HWLOC_XMLFILE, HWLOC_SYNTHETIC and HWLOC_COMPONENTS"
    )]
    NoObjects {
        /// What was looked at.
        from: String,
        /// What is missing: cores.
        missing: &'static str,
    },
}

/// Describes a machine. About 50 ms for a real one: never on the swap path.
///
/// # Errors
/// [`TopologyError`]: unreadable, not what was asked for, or without a single core.
pub fn discover(source: &Source) -> Result<View, TopologyError> {
    let (from, hint) = match source {
        Source::System => (
            "this machine".to_owned(),
            "check that /sys is mounted and libhwloc is the one this was built with",
        ),
        Source::Xml(path) => (path.display().to_string(), "write it with `lstopo machine.xml`"),
        Source::Synthetic(words) => (format!("{words:?}"), "see `man hwloc`, Synthetic topologies"),
    };
    let unreadable = |why: &dyn std::fmt::Display| TopologyError::Unreadable {
        from: from.clone(),
        why: why.to_string(),
        hint,
    };
    let builder = TopologyBuilder::new();
    let builder = match source {
        Source::System => builder,
        Source::Xml(path) => {
            // Read here: hwlocality panics on a file that is not there.
            let xml = std::fs::read_to_string(path).map_err(|error| unreadable(&error))?;
            builder.from_xml(&xml).map_err(|error| unreadable(&error))?
        }
        Source::Synthetic(words) => builder.from_synthetic(words).map_err(|error| unreadable(&error))?,
    };
    let topology = builder
        .with_io_type_filter(TypeFilter::KeepImportant)
        .map_err(|error| unreadable(&error))?
        .build()
        .map_err(|error| unreadable(&error))?;
    if *source != Source::System && topology.is_this_system() {
        return Err(TopologyError::Ignored { from });
    }
    let view = describe(&topology, from);
    if view.cores.is_empty() {
        return Err(TopologyError::NoObjects { from: view.source, missing: "cores" });
    }
    Ok(view)
}

fn describe(topology: &Topology, source: String) -> View {
    let mut nodes: Vec<Node> = topology.objects_with_type(ObjectType::NUMANode).filter_map(node).collect();
    nodes.sort_by_key(|node| node.index);
    let mut cores: Vec<Core> = topology.objects_with_type(ObjectType::Core).filter_map(core).collect();
    if cores.is_empty() {
        // Some virtual machines show logical processors only.
        cores = topology.objects_with_type(ObjectType::PU).filter_map(core).collect();
    }
    let mut gpus: Vec<Gpu> = topology.pci_devices().filter_map(gpu).collect();
    gpus.sort_by_key(|gpu| gpu.pci);
    View { nodes, cores, gpus, this_system: topology.is_this_system(), source }
}

fn node(object: &TopologyObject) -> Option<Node> {
    let memory = match object.attributes()? {
        ObjectAttributes::NUMANode(numa) => numa.local_memory().map_or(0, u64::from),
        _ => 0,
    };
    Some(Node { index: object.os_index()?, cpus: cpus(object), memory: Bytes(memory) })
}

fn core(object: &TopologyObject) -> Option<Core> {
    let cpus = cpus(object);
    (!cpus.is_empty()).then_some(Core { cpus })
}

fn gpu(object: &TopologyObject) -> Option<Gpu> {
    let Some(ObjectAttributes::PCIDevice(pci)) = object.attributes() else { return None };
    // The class is 16 bits here: base class and subclass.
    if pci.vendor_id() != NVIDIA || pci.class_id() >> 8 != DISPLAY {
        return None;
    }
    let place = PciId {
        domain: pci.domain().into(),
        bus: pci.bus_id(),
        device: pci.bus_device(),
        function: pci.function(),
    };
    let near = object.first_non_io_ancestor()?;
    Some(Gpu { pci: place, cpus: cpus(near), nodes: nodes(near) })
}

fn cpus(object: &TopologyObject) -> Mask {
    object.cpuset().map(|set| set.iter_set().map(usize::from).collect()).unwrap_or_default()
}

fn nodes(object: &TopologyObject) -> Mask {
    object.nodeset().map(|set| set.iter_set().map(usize::from).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recorded(name: &str) -> Source {
        Source::Xml(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/topology").join(name))
    }

    #[test]
    fn a_recorded_machine_with_eight_gpus_on_four_of_eight_nodes() {
        let view = discover(&recorded("dgxa100.xml")).expect("reads");
        assert!(!view.this_system);
        assert_eq!((view.nodes.len(), view.cores.len(), view.gpus.len()), (8, 128, 8));
        let nodes: Vec<_> = view.gpus.iter().map(|gpu| gpu.nodes.to_string()).collect();
        assert_eq!(nodes, ["3", "3", "1", "1", "7", "7", "5", "5"]);
        assert_eq!(view.nodes[0].cpus.to_string(), "0-15,128-143");
        assert_eq!(view.nodes[0].memory, Bytes::gib(128));
    }

    #[test]
    fn a_recorded_machine_with_two_sockets() {
        let view = discover(&recorded("hgxh100.xml")).expect("reads");
        assert_eq!((view.nodes.len(), view.gpus.len()), (2, 8));
    }

    #[test]
    fn a_synthetic_machine_has_no_gpus() {
        let view = discover(&Source::Synthetic("node:2 core:4 pu:2".into())).expect("reads");
        assert_eq!((view.nodes.len(), view.cores.len(), view.gpus.len()), (2, 8, 0));
        assert_eq!(view.cpus().to_string(), "0-15");
        assert_eq!(view.nodes_of(&"9".parse().expect("a list")).to_string(), "1");
    }

    #[test]
    fn this_machine_can_be_described() {
        let view = discover(&Source::System).expect("reads");
        assert!(!view.cores.is_empty());
    }

    #[test]
    fn what_hwloc_cannot_read_is_named() {
        let missing = discover(&Source::Xml("/no/such/machine.xml".into())).expect_err("is not there");
        assert!(missing.to_string().contains("/no/such/machine.xml"), "{missing}");
        let nonsense = discover(&Source::Synthetic("chat:2".into())).expect_err("is nonsense");
        assert!(nonsense.to_string().contains("chat:2"), "{nonsense}");
    }
}

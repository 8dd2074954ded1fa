//! Where things are: cores, NUMA nodes, GPUs, and which of them an engine should use.
//!
//! | file | role |
//! | --- | --- |
//! | `discover` | asks hwloc about this machine, an XML file of another, or a synthetic one; the only user of hwloc |
//! | `view` | what was found, as plain data |
//! | `mask` | sets of cores and nodes, as Linux writes them (`0-15,128`) |
//! | `place` | PURE: GPU → NUMA node → cores, inside what the job allows |
//! | `bind` | a placement made ready for the moment between fork and exec |
//!
//! A process's memory can only be bound by itself on Linux, so an engine is bound in the forked child, before
//! its program runs. There hwloc cannot be called (it allocates); the masks are made beforehand and two system
//! calls apply them.

mod bind;
mod discover;
mod doctor;
mod mask;
mod place;
mod view;

pub use bind::{BindError, Binding};
pub use discover::{Source, TopologyError, discover};
pub use doctor::doctor;
pub use mask::{Mask, MaskError};
pub use place::{Allowed, MemoryPolicy, Placement, Request, place};
pub use view::{Core, Gpu, Node, PciId, View};

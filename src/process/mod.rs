//! Processes: how they are started, known, frozen and ended.
//!
//! A job must leave nothing behind, whatever the site's tracker does: under `proctrack/linuxproc` and
//! `proctrack/pgid` a process that called `setsid` outlives its step. So this room trusts only what the
//! kernel guarantees:
//!
//! * [`Spawner`]: one thread that never ends forks every child, because `PR_SET_PDEATHSIG` fires when the
//!   *thread* that forked is gone (prctl(2)), not when the process is.
//! * [`Child`]: pid, pidfd, start time, and the exit status as a future; reaped by its own pid, never by
//!   `waitpid(-1)`, which would steal the statuses of other waiters.
//! * [`Tree`]: the whole tree of an engine. A pid is only ever used together with its start time
//!   ([`ProcId`]), so a recycled number is never mistaken for the process it once was.
//! * [`warden`]: a small process above each engine, below which nobody is lost, and which ends them all when
//!   this process dies.
//! * [`janitor`]: tidies up where Slurm has killed everybody at once.
//! * [`SharedFiles`]: what a tree made in `/dev/shm`, which no process's end removes.
//! * [`stop`]: TERM, grace, KILL, to the whole tree, until a new look at `/proc` finds nobody.
//! * [`hangs`]: who was killed in vain; what such a process holds is no engine's any more.
//!
//! What a stranger may touch: [`Launch`] for what a child is given; the others for how it lives.
//! Nothing in this room knows what an engine is.

mod child;
mod doctor;
mod escape;
mod handle;
mod hung;
pub mod janitor;
mod launch;
mod limits;
mod marked;
mod orphans;
mod shm;
mod spawner;
mod stat;
mod stop;
mod tree;
pub mod warden;

pub use child::Child;
pub use doctor::doctor;
pub use escape::out_of_the_tree;
pub use handle::Handle;
pub use hung::hangs;
#[cfg(test)]
pub(crate) use hung::pretend;
pub use janitor::start_janitor;
pub use launch::{Group, Launch, Output, Stdin};
pub use limits::{dump_no_core, raise_open_files};
pub use marked::kill_marked;
pub use orphans::adopt_orphans;
pub use shm::{SHARED_LIST, SharedFile, SharedFiles, remove_shared};
pub use spawner::{SpawnError, Spawner};
pub use stat::{ProcFs, ProcId, Stat, State};
pub use stop::{Ended, How, StopReport, stop};
pub use tree::{Marker, Tree};

#[cfg(test)]
mod tests;

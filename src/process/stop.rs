//! Ending a whole tree.
//!
//! ```text
//! look ─ nobody ──────────────────────────────▶ done
//!   │ somebody
//!   ▼
//! TERM, CONT to whoever is new ─ all gone ────▶ look again
//!   │ the grace is over
//!   ▼
//! KILL to all ─ all gone ─────────────────────▶ look again
//!   │ still there (state D) after the last wait
//!   ▼
//! survivors, reported by name
//! ```
//!
//! It ends only with a look at `/proc` that finds nobody: a process forked in the last moment is found by
//! the next look and ended the same way. CONT goes with TERM because a stopped process handles no signal.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use futures_util::future::join_all;
use rustix::process::Signal;
use tokio::time::{Instant, timeout_at};

use super::handle::Handle;
use super::hung;
use super::stat::{ProcId, Stat};
use super::tree::Tree;

/// How long processes that were sent KILL are waited for; only one that is stuck in the kernel needs more.
const KILL_WAIT: Duration = Duration::from_secs(5);
/// How often, while waiting, a look is taken for processes forked meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// What ended a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// TERM, within the grace.
    Term,
    /// KILL, after the grace.
    Kill,
}

/// One process that was ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Who it was.
    pub id: ProcId,
    /// Its name.
    pub comm: Box<str>,
    /// What ended it.
    pub how: How,
}

/// What stopping a tree came to.
#[derive(Debug, Default)]
pub struct StopReport {
    /// Those that are gone, in the order they were found.
    pub ended: Vec<Ended>,
    /// Those that even KILL did not end; they hang in the kernel, for instance in a driver.
    pub survivors: Vec<Stat>,
}

impl StopReport {
    /// Whether a last look found nobody.
    pub fn is_clean(&self) -> bool {
        self.survivors.is_empty()
    }
}

struct Target {
    stat: Stat,
    handle: Handle,
    how: How,
}

/// Ends every process of the tree: TERM, `grace` to obey, then KILL until nobody is left. A zero grace
/// kills at once.
///
/// # Errors
/// When `/proc` cannot be read, or a process cannot be held or signalled.
pub async fn stop(tree: &mut Tree, grace: Duration) -> io::Result<StopReport> {
    let mut report = StopReport::default();
    let deadline = Instant::now() + grace;
    let mut targets: HashMap<ProcId, Target> = HashMap::new();

    while Instant::now() < deadline {
        let members = tree.members()?;
        if members.is_empty() {
            break;
        }
        meet(&mut targets, members, How::Term)?;
        gone(&targets, deadline.min(Instant::now() + LOOK_AGAIN)).await?;
        bury(&mut targets, tree, &mut report);
    }

    let last = Instant::now() + KILL_WAIT;
    loop {
        let members = tree.members()?;
        if members.is_empty() {
            break;
        }
        if Instant::now() >= last {
            members.iter().for_each(|stat| hung::note(stat.id));
            report.survivors = members;
            return Ok(report);
        }
        meet(&mut targets, members, How::Kill)?;
        gone(&targets, last.min(Instant::now() + LOOK_AGAIN)).await?;
        bury(&mut targets, tree, &mut report);
    }
    report.ended.extend(targets.into_values().map(Target::ended));
    if let Some(warden) = tree.warden().map(Handle::open).transpose()?.flatten() {
        // It ends by itself now that nobody is left below it.
        timeout_at(Instant::now() + KILL_WAIT, warden.exited()).await.unwrap_or(Ok(()))?;
    }
    Ok(report)
}

impl Target {
    fn ended(self) -> Ended {
        Ended { id: self.stat.id, comm: self.stat.comm, how: self.how }
    }
}

/// Signals those that have not had this signal yet.
fn meet(targets: &mut HashMap<ProcId, Target>, members: Vec<Stat>, how: How) -> io::Result<()> {
    for stat in members {
        match targets.get_mut(&stat.id) {
            // A signal that comes between fork and exec is taken by the parent's handler and lost with it:
            // another name tells that the program is another, and has not been told.
            Some(target) if target.how == how && target.stat.comm == stat.comm => {}
            Some(target) => {
                tell(&target.handle, how)?;
                (target.how, target.stat) = (how, stat);
            }
            None => {
                let Some(handle) = Handle::open(stat.id)? else { continue };
                tell(&handle, how)?;
                targets.insert(stat.id, Target { stat, handle, how });
            }
        }
    }
    Ok(())
}

fn tell(handle: &Handle, how: How) -> io::Result<()> {
    match how {
        How::Kill => handle.signal(Signal::KILL)?,
        // CONT first: the kernel gives a signal to the main thread only if that can run, and a program like Python's
        // interpreter acts on none that another thread was given while the main one sleeps.
        How::Term => handle.signal(Signal::CONT)? && handle.signal(Signal::TERM)?,
    };
    Ok(())
}

/// Waits until every target has exited or the deadline is over.
async fn gone(targets: &HashMap<ProcId, Target>, deadline: Instant) -> io::Result<()> {
    let exits = join_all(targets.values().map(|target| target.handle.exited()));
    match timeout_at(deadline, exits).await {
        Ok(results) => results.into_iter().collect(),
        Err(_) => Ok(()),
    }
}

/// Moves those that are gone to the report.
fn bury(targets: &mut HashMap<ProcId, Target>, tree: &Tree, report: &mut StopReport) {
    let gone = |target: &Target| tree.proc().same(target.stat.id).is_none_or(|stat| stat.is_dead());
    let mut buried: Vec<_> =
        targets.extract_if(|_, target| gone(target)).map(|(_, target)| target.ended()).collect();
    buried.sort_by_key(|ended| ended.id.start);
    report.ended.append(&mut buried);
}

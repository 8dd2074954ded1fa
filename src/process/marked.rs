//! Processes of a run that is gone, found by the mark that it put into the environment of each.
//!
//! Wardens are left out: they end by themselves, after everybody below them.

use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use super::handle::Handle;
use super::stat::{ProcFs, Stat, value_in};
use super::warden;

/// How long a process that was sent KILL is waited for; only one that hangs in the kernel needs more.
const PATIENCE: Duration = Duration::from_secs(2);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Kills every process that was started with `name` set to a value that begins with `prefix`, until a look at `/proc` finds
/// none or time is up. How many there were. Blocks.
///
/// # Errors
/// When `/proc` cannot be read.
pub fn kill_marked(name: &str, prefix: &str) -> io::Result<usize> {
    let proc = ProcFs::default();
    let deadline = Instant::now() + PATIENCE;
    let mut met = std::collections::HashSet::new();
    loop {
        let marked = marked(&proc, name, prefix)?;
        for stat in &marked {
            met.insert(stat.id);
            if let Ok(Some(handle)) = Handle::open(stat.id) {
                // It may end in this very moment, which is as well.
                let _ = handle.signal(Signal::KILL);
            }
        }
        if marked.is_empty() || Instant::now() >= deadline {
            return Ok(met.len());
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn marked(proc: &ProcFs, name: &str, prefix: &str) -> io::Result<Vec<Stat>> {
    let me = std::process::id().cast_signed();
    let mut found = proc.scan()?;
    found.retain(|stat| {
        let candidate = stat.id.pid != me && !stat.is_dead() && &*stat.comm != warden::NAME;
        candidate
            && proc.environ(stat.id.pid).is_ok_and(|environ| {
                value_in(&environ, name).is_some_and(|value| value.starts_with(prefix.as_bytes()))
            })
    });
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    #[test]
    fn only_the_marked_ones_are_killed() {
        let mark = format!("run-{}", std::process::id());
        let sleep = |value: &str| {
            Command::new("sleep").arg("600").env("TEST_MARK", value).spawn().expect("sleep can be started")
        };
        let mut ours = [sleep(&format!("{mark}/a")), sleep(&format!("{mark}/b"))];
        let mut others = sleep(&format!("{mark}0/a"));
        // This test is the parent of all, and reaps them as they end.
        let reaper =
            std::thread::spawn(move || ours.each_mut().map(|child| child.wait().expect("ours").signal()));
        assert!(kill_marked("TEST_MARK", &format!("{mark}/")).expect("a pass") >= 1);
        assert_eq!(reaper.join().expect("no panic"), [Some(9), Some(9)]);
        assert!(others.try_wait().expect("ours").is_none());
        others.kill().expect("ours");
        others.wait().expect("ours");
    }
}

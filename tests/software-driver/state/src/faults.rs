//! The file `faults`: what the software driver does wrong on purpose.
//!
//! One fault a line; the first that matches strikes, and is counted down:
//!
//! ```text
//! cuMemAlloc_v2 error=2 times=1                  # the next allocation of any process: out of memory
//! cuCheckpointProcessLock delay=250 target=4711  # milliseconds, whenever process 4711 is locked
//! cuMemUnmap error=1 after=3 times=1            # the fourth
//! cuCheckpointProcessRestore hang
//! cuMemHostRegister_v2 hold                      # waits as long as this line stands
//! cuCheckpointProcessCheckpoint crash pid=99     # process 99 is killed as it makes the call
//! cuCheckpointProcessCheckpoint kill-target      # the process that is checkpointed is killed
//! ```

use std::path::Path;
use std::time::Duration;

/// What happens to the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It returns this `CUresult`.
    Error(i32),
    /// It starts this much later.
    Delay(Duration),
    /// It never returns.
    Hang,
    /// It waits as long as the line stands.
    Hold,
    /// The caller dies of `SIGKILL`.
    Crash,
    /// The process that the call is about dies of `SIGKILL` while the call is under way.
    KillTarget,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault<'a> {
    call: &'a str,
    action: Action,
    times: Option<u32>,
    after: Option<u32>,
    pid: Option<i32>,
    target: Option<i32>,
}

impl<'a> Fault<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let mut words = line.split('#').next()?.split_whitespace();
        let call = words.next()?;
        let mut fault =
            Self { call, action: Action::Hang, times: None, after: None, pid: None, target: None };
        for word in words {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "error" => fault.action = Action::Error(value.parse().ok()?),
                "delay" => fault.action = Action::Delay(Duration::from_millis(value.parse().ok()?)),
                "hang" => fault.action = Action::Hang,
                "hold" => fault.action = Action::Hold,
                "crash" => fault.action = Action::Crash,
                "kill-target" => fault.action = Action::KillTarget,
                "times" => fault.times = Some(value.parse().ok()?),
                "after" => fault.after = Some(value.parse().ok()?),
                "pid" => fault.pid = Some(value.parse().ok()?),
                "target" => fault.target = Some(value.parse().ok()?),
                _ => return None,
            }
        }
        Some(fault)
    }

    fn strikes(&self, call: &str, pid: i32, target: Option<i32>) -> bool {
        (self.call == call || self.call == "*")
            && self.times != Some(0)
            && self.pid.is_none_or(|wanted| wanted == pid)
            && self.target.is_none_or(|wanted| Some(wanted) == target)
    }
}

/// The fault that strikes this call of process `pid`, if the folder names one. `target` is the process that a
/// checkpoint call is about.
pub fn strike(directory: &Path, call: &str, pid: i32, target: Option<i32>) -> Option<Action> {
    let path = directory.join("faults");
    let text = std::fs::read_to_string(&path).ok()?;
    let (line, fault) = text
        .lines()
        .filter_map(|line| Some((line, Fault::parse(line)?)))
        .find(|(_, fault)| fault.strikes(call, pid, target))?;
    let waits = fault.after.filter(|after| *after > 0);
    let counted = match (waits, fault.times) {
        (Some(after), _) => Some(("after", after)),
        (None, Some(times)) => Some(("times", times)),
        (None, None) => None,
    };
    if let Some((key, count)) = counted {
        let counted = line.replace(&format!("{key}={count}"), &format!("{key}={}", count - 1));
        let scratch = directory.join(format!("faults.{pid}"));
        let written = std::fs::write(&scratch, text.replacen(line, &counted, 1));
        if written.and_then(|()| std::fs::rename(&scratch, &path)).is_err() {
            return None;
        }
    }
    waits.is_none().then_some(fault.action)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_strikes_as_often_as_it_says() {
        let folder = std::env::temp_dir().join(format!("software-gpu-faults-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("faults"), "cuInit error=3 times=2\ncuFoo crash target=9\n").unwrap();
        assert_eq!(strike(&folder, "cuInit", 1, None), Some(Action::Error(3)));
        assert_eq!(strike(&folder, "cuInit", 1, None), Some(Action::Error(3)));
        assert_eq!(strike(&folder, "cuInit", 1, None), None);
        assert_eq!(strike(&folder, "cuFoo", 1, Some(8)), None);
        assert_eq!(strike(&folder, "cuFoo", 1, Some(9)), Some(Action::Crash));
        std::fs::write(folder.join("faults"), "cuInit error=3 after=2 times=1\n").unwrap();
        let struck: Vec<_> = (0..4).map(|_| strike(&folder, "cuInit", 1, None).is_some()).collect();
        assert_eq!(struck, [false, false, true, false]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}

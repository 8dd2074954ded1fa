//! What only Slurm's own tools tell: the site's rules and the job's end.
//!
//! `squeue` and `scontrol` work for plain users and take some 40 ms; they are asked off every path that a request is on,
//! and a cluster that does not answer within [`PATIENCE`] changes nothing.

use super::MemoryBy;
use crate::units::Bytes;
use std::{
    process::Stdio,
    time::{Duration, SystemTime},
};

/// Longest wait for an answer of Slurm's controller.
const PATIENCE: Duration = Duration::from_secs(10);

/// The site's rules for a job's end, and what it gives unasked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `KillWait`: from TERM to KILL. The node itself never waits less than 5 s.
    pub kill_wait: Option<Duration>,
    /// `ProctrackType`.
    pub tracker: Option<String>,
    /// `DefMemPerNode` or `DefMemPerCPU`; a partition may have others.
    pub memory: Option<MemoryBy>,
}

impl Rules {
    /// Whether this is what a job has that did not ask.
    pub fn is_default(&self, memory: Option<MemoryBy>) -> bool {
        memory.is_some() && memory == self.memory
    }
}

/// Asks `scontrol show config`.
pub async fn rules() -> Rules {
    match ask("scontrol", &["show", "config"]).await {
        Some(text) => parse_rules(&text),
        None => Rules::default(),
    }
}

/// When the job ends, by `squeue`'s time left: its other forms are local time without a zone, or JSON of every job of the
/// cluster (Slurm 22.05 prints them all, whatever `-j` asks for). Ask about once a minute: the limit can be changed while the
/// job runs.
pub async fn end_time(job: u32) -> Option<SystemTime> {
    let text = ask("squeue", &["-h", "-j", &job.to_string(), "-o", "%L"]).await?;
    parse_left(text.trim()).and_then(|left| SystemTime::now().checked_add(left))
}

/// Runs one of Slurm's tools in a thread of its own; its output, if it succeeded in time.
async fn ask(tool: &'static str, args: &[&str]) -> Option<String> {
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let run = tokio::task::spawn_blocking(move || {
        std::process::Command::new(tool).args(args).stdin(Stdio::null()).stderr(Stdio::null()).output()
    });
    let output = tokio::time::timeout(PATIENCE, run).await.ok()?.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What `scontrol show config` prints.
pub fn parse_rules(text: &str) -> Rules {
    let value = |name: &str| {
        text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let seconds = value("KillWait").and_then(|text| text.split_whitespace().next()?.parse().ok());
    // In MiB, or UNLIMITED.
    let mib = |name| Some(Bytes(value(name)?.parse::<u64>().ok()?.checked_mul(1 << 20)?));
    let memory = mib("DefMemPerNode").map(MemoryBy::Node).or_else(|| mib("DefMemPerCPU").map(MemoryBy::Core));
    Rules { kill_wait: seconds.map(Duration::from_secs), tracker: value("ProctrackType"), memory }
}

/// `[DAYS-][HOURS:]MINUTES:SECONDS`; nothing for `UNLIMITED`, `NOT_SET` and `INVALID`.
pub fn parse_left(text: &str) -> Option<Duration> {
    let (days, clock) = text.split_once('-').unwrap_or(("0", text));
    let parts: Vec<u64> = clock.split(':').map(|part| part.parse().ok()).collect::<Option<_>>()?;
    let seconds = match parts[..] {
        [minutes, seconds] => minutes.checked_mul(60)?.checked_add(seconds)?,
        [hours, minutes, seconds] => {
            hours.checked_mul(3600)?.checked_add(minutes.checked_mul(60)?)?.checked_add(seconds)?
        }
        _ => return None,
    };
    let days = days.parse::<u64>().ok()?.checked_mul(86_400)?;
    Some(Duration::from_secs(days.checked_add(seconds)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_a_site() {
        let text = "Configuration data as of 2026\nKillWait                = 30 sec\nProctrackType           = proctrack/cgroup\n";
        let rules = parse_rules(text);
        assert_eq!(rules.kill_wait, Some(Duration::from_secs(30)));
        assert_eq!(rules.tracker.as_deref(), Some("proctrack/cgroup"));
        assert_eq!(parse_rules("nothing of the kind"), Rules::default());
        let by_core = parse_rules("DefMemPerNode           = UNLIMITED\nDefMemPerCPU            = 256\n");
        assert!(by_core.is_default(Some(MemoryBy::Core(Bytes::mib(256)))));
        assert!(!by_core.is_default(Some(MemoryBy::Node(Bytes::mib(256)))));
        assert!(!rules.is_default(None));
    }

    #[test]
    fn time_left() {
        assert_eq!(parse_left("4:59"), Some(Duration::from_secs(299)));
        assert_eq!(parse_left("1-02:03:04"), Some(Duration::from_secs(93_784)));
        assert_eq!(parse_left("UNLIMITED"), None);
    }
}

//! Engines that are launched ahead of their turn: the second one imports while the first one starts, and is held before its
//! first use of the GPU. Both wait for files that the test makes, so that what comes first is no matter of time.

use super::{
    gpu_bench::Bench,
    service::{Service, eventually, processes_with, swapserve},
};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use std::{fs, path::PathBuf, time::Duration};
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A run of two engines on one GPU that do not fit together: `left` starts, `right` is launched ahead.
struct Two {
    bench: Bench,
    service: Service,
    files: TempDir,
}

impl Two {
    /// `right` is swapped so and has these further arguments. Nothing where tests run on a real GPU.
    fn begin(swap: &str, arguments: &str) -> Option<Self> {
        let bench = Bench::software(1)?;
        Bench::preload_library();
        let files = tempfile::tempdir().unwrap();
        let engine = |name: &str, swap: &str, arguments: &str| {
            let program = Bench::engine_program();
            let command = format!(
                "{} --port {{{{ port }}}} --model {{{{ name }}}} --weights {} {arguments}",
                program.display(),
                300 * MIB
            );
            format!(
                "[models.{name}]\nengine = \"custom\"\ncommand = {command:?}\ngpus = 1\nswap = \"{swap}\"\n\
                 gpu_memory = \"700MiB\"\nstart_ahead = true\n"
            )
        };
        let at = |file: &str| files.path().join(file).display().to_string();
        let left = engine("left", "checkpoint", &format!("--load-until {}", at("loaded")));
        let right = engine("right", swap, &format!("--import-until {} {arguments}", at("imported")));
        let pool = if swap == "park" { "[memory]\npool = \"1GiB\"\n" } else { "" };
        let journal = at("journal");
        let options = ["--journal", journal.as_str()];
        let service = Service::launch_in(&(left + &right + pool), &options, &bench.environment());
        Some(Two { bench, service, files })
    }

    /// Goes on until `right` is held, `left` being started all the while.
    fn until_held(&self) {
        eventually("it imports", || self.row("right")["stage"] == "importing");
        self.make("imported");
        eventually("it is held", || self.row("right")["stage"] == "held");
        assert_eq!(self.row("right")["state"], "preparing");
        assert_eq!(self.row("left")["state"], "starting");
        let table = self.bench.lab().unwrap().table();
        assert!(table.find(self.pid("right")).is_none(), "it has not touched the driver");
        let used = self.service.status()["used"].clone();
        assert!(used["gpu"][0].as_u64().unwrap() < 800 * MIB, "nothing is reserved for it: {used}");
    }

    fn make(&self, file: &str) {
        fs::write(self.files.path().join(file), "").unwrap();
    }

    /// A model's row of the status; null as long as there is none.
    fn row(&self, name: &str) -> Value {
        let status = self.service.verb(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
        let rows = status["models"].as_array().cloned().unwrap_or_default();
        rows.into_iter().find(|row| row["name"] == name).unwrap_or_default()
    }

    fn pid(&self, name: &str) -> i32 {
        i32::try_from(self.row(name)["pid"].as_i64().unwrap()).unwrap()
    }

    /// Ends the run. What its journal says of starts, in order: `prepare right`, `answered left`, …
    fn journal(&mut self) -> Vec<String> {
        self.service.signal(Signal::SIGTERM);
        self.service.ended();
        let text = fs::read_to_string(self.files.path().join("journal")).unwrap();
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let said = lines.filter_map(|line| {
            let what =
                [&line["event"]["event"], &line["effect"]["effect"]].into_iter().find_map(Value::as_str)?;
            let model =
                [&line["event"]["model"], &line["effect"]["model"]].into_iter().find_map(Value::as_u64)?;
            Some(format!("{what} {}", ["left", "right"][model as usize]))
        });
        let of_starts = ["prepare", "imported", "proceed", "start", "answered", "started", "start_failed"];
        said.filter(|said| of_starts.iter().any(|word| said.split(' ').next() == Some(word))).collect()
    }

    /// Both come up, and answer.
    fn both_answer(&self) {
        self.make("loaded");
        self.service.wait();
        for name in ["left", "right"] {
            assert!(!self.service.answer(name).is_empty());
        }
    }
}

/// The second engine has imported before the first has answered, and goes on only when that one is out.
fn imports_meanwhile(swap: &str, arguments: &str) {
    let Some(mut two) = Two::begin(swap, arguments) else { return };
    two.until_held();
    let out = two.service.verb(&["swap", "out", "right"]);
    assert!(out.status.success(), "it is on no GPU: {}", String::from_utf8_lossy(&out.stderr));
    let explained = two.service.verb(&["explain", "right"]);
    let explained = String::from_utf8_lossy(&explained.stdout);
    assert!(explained.contains("held before its first use of the GPU"), "{explained}");
    two.both_answer();
    let row = two.row("right");
    let phases: Vec<&str> =
        row["start"].as_array().unwrap().iter().map(|phase| phase["phase"].as_str().unwrap()).collect();
    assert_eq!(phases, ["waiting", "importing", "held", "loading", "listening", "trial"], "{row}");
    assert_eq!(row["mechanism"], swap, "{row}");
    let starts = two.journal();
    let in_order = [
        "start left",
        "prepare right",
        "imported right",
        "answered left",
        "started left",
        "proceed right",
        "answered right",
        "started right",
    ];
    assert_eq!(starts, in_order, "{}", two.service.log());
    let journal = two.files.path().join("journal");
    let replayed = swapserve().args(["simulate", "--replay"]).arg(journal).output().unwrap();
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
}

#[test]
fn the_second_engine_imports_while_the_first_starts() {
    imports_meanwhile("checkpoint", "");
}

#[test]
fn one_whose_children_come_to_the_driver_first_is_held_as_well() {
    imports_meanwhile("checkpoint", "--workers-first --workers 1");
}

#[test]
fn one_that_is_parked_is_held_as_well() {
    imports_meanwhile("park", "");
}

/// Engines that load their model on the first request do not come to the GPU before.
#[test]
fn one_that_listens_before_its_turn_is_not_charged_with_its_wait() {
    let Some(mut two) = Two::begin("checkpoint", "--lazy") else { return };
    two.until_held();
    assert_eq!(two.row("right")["note"], "it listens; waits for its turn");
    let said = two.service.verb(&["status"]);
    let said = String::from_utf8_lossy(&said.stdout);
    assert!(said.contains("right waits for its turn: "), "{said}");
    std::thread::sleep(Duration::from_secs(3));
    two.both_answer();
    let row = two.row("right");
    let took = |phase: &str| {
        let phases = row["start"].as_array().unwrap();
        phases.iter().find(|it| it["phase"] == phase).unwrap()["seconds"].as_f64().unwrap()
    };
    let own: f64 = ["importing", "loading", "listening"].into_iter().map(took).sum();
    let (held, cold_start) = (took("held"), row["cold_start_s"].as_f64().unwrap());
    assert!(held > 3.0 && (cold_start - own).abs() < 0.5, "{row}");
    let starts = two.journal();
    assert_eq!(starts[..3], ["start left", "prepare right", "imported right"]);
    assert!(!starts.contains(&"start_failed right".to_owned()), "{starts:?}");
}

#[test]
fn one_that_is_killed_while_it_is_held_is_started_in_its_turn() {
    let Some(mut two) = Two::begin("checkpoint", "") else { return };
    two.until_held();
    kill(nix::unistd::Pid::from_raw(two.pid("right")), Signal::SIGKILL).unwrap();
    eventually("that is a failed start", || two.row("right")["state"] == "cold");
    let row = two.row("right");
    assert!(row["note"].as_str().unwrap().contains("SIGKILL"), "{row}");
    assert_eq!(two.row("left")["state"], "starting", "and nothing to the other one");
    two.both_answer();
    let starts = two.journal();
    let in_order = [
        "start left",
        "prepare right",
        "imported right",
        "start_failed right",
        "answered left",
        "started left",
        "start right",
        "answered right",
        "started right",
    ];
    assert_eq!(starts, in_order, "not held again; {}", two.service.log());
}

#[test]
fn one_that_is_stopped_while_it_is_held_is_continued() {
    let Some(two) = Two::begin("checkpoint", "") else { return };
    two.until_held();
    let pid = two.pid("right");
    kill(nix::unistd::Pid::from_raw(pid), Signal::SIGSTOP).unwrap();
    let runs = || {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        !stat.rsplit(") ").next().unwrap().starts_with('T')
    };
    eventually("it is continued", runs);
    assert_eq!(two.row("right")["stage"], "held");
    two.both_answer();
}

#[test]
fn one_that_comes_to_the_gpu_past_the_library_is_stopped_and_started_in_its_turn() {
    let Some(mut two) = Two::begin("checkpoint", "--reach deepbind") else { return };
    eventually("it imports", || two.row("right")["stage"] == "importing");
    two.make("imported");
    eventually("it is found out", || two.row("right")["state"] == "cold");
    let row = two.row("right");
    assert!(row["note"].as_str().unwrap().contains("past the preload library"), "{row}");
    two.both_answer();
    let starts = two.journal();
    assert_eq!(starts[..3], ["start left", "prepare right", "start_failed right"]);
    assert!(starts.contains(&"start right".to_owned()), "{starts:?}");
}

#[test]
fn a_killed_daemon_leaves_nothing_of_one_that_is_held() {
    let Some(mut two) = Two::begin("checkpoint", "--workers-first --workers 1") else { return };
    two.until_held();
    two.service.signal(Signal::SIGKILL);
    two.service.ended();
    let mark = two.service.dir.path().to_str().unwrap().to_owned();
    eventually("every process ends", || processes_with(&mark).is_empty());
    let files: PathBuf = two.files.path().to_owned();
    eventually("also those of the engines", || processes_with(files.to_str().unwrap()).is_empty());
    assert_eq!(two.bench.lab().unwrap().table().used(0), 0);
}

#[test]
fn a_run_that_is_ended_leaves_nothing_of_one_that_is_held() {
    let Some(mut two) = Two::begin("checkpoint", "--workers-first --workers 1") else { return };
    two.until_held();
    two.service.signal(Signal::SIGTERM);
    two.service.ended();
    two.service.assert_gone();
}

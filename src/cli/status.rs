//! `swapserve status`: each model's state, what it holds, how it is swapped, who waits.

use super::{
    Globals, Outcome,
    args::EndpointArgs,
    client::Client,
    output::{Report, Style},
};
use crate::{
    daemon::{ModelRow, RunStatus, Stage, StartPhase},
    scheduler::State,
    units::{Bytes, Footprint},
};
use std::{
    io::{self, Write},
    process::ExitCode,
    time::Duration,
};

/// Runs the verb.
pub fn execute(args: &EndpointArgs, globals: &Globals) -> Outcome {
    let status: RunStatus = Client::find(args)?.get("/swapserve/v1/status")?;
    globals.output().show(&status)?;
    Ok(ExitCode::SUCCESS)
}

impl Report for RunStatus {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        let run = &self.run;
        let job = run.job.as_deref().map_or("no Slurm job".to_owned(), |id| format!("job {id}"));
        let end = self.remaining_s.map_or(String::new(), |left| format!(", ends in {}", spoken(left)));
        let mode = if self.accepting { String::new() } else { style.warn(" (ending: no new requests)") };
        let again = match run.restarts {
            0 => String::new(),
            times => format!(" (restarted {times} time(s))"),
        };
        writeln!(
            out,
            "{}{again} on {}, up {}{end}{mode}",
            style.bold(&job),
            run.node,
            spoken(self.uptime_s)
        )?;
        writeln!(out, "{}", run.url)?;
        writeln!(out, "used {} of {}", resources(&self.used), resources(&self.capacity))?;
        writeln!(out)?;
        let heads = [
            "MODEL",
            "STATE",
            "MECHANISM",
            "RUNNING",
            "WAITING",
            "RESIDENT",
            "SWAPS",
            "LAST IN",
            "LAST OUT",
            "START",
        ];
        let rows: Vec<[String; 10]> = self.models.iter().map(cells).collect();
        table(out, style, heads, &rows)?;
        writeln!(out)?;
        for model in self.models.iter().filter(|m| !m.placement.is_empty()) {
            writeln!(out, "{}", style.dim(&format!("{} is on {}", model.name, model.placement)))?;
        }
        for model in self.models.iter().filter(|m| !m.start.is_empty()) {
            let under_way = matches!(model.state, State::Cold | State::Preparing | State::Starting);
            let verb = match model.stage {
                Stage::Held => "waits for its turn",
                _ if under_way => "is starting",
                _ => "started",
            };
            let line = format!("{} {verb}: {}", model.name, phases(model));
            writeln!(out, "{}", if under_way { line } else { style.dim(&line) })?;
        }
        for model in &self.models {
            for (mechanism, reason) in &model.crossed {
                let reason = reason.lines().next().unwrap_or_default();
                writeln!(out, "{}", style.dim(&format!("{}: not {mechanism}: {reason}", model.name)))?;
            }
        }
        for model in self.models.iter().filter(|m| !m.note.is_empty()) {
            writeln!(out, "\n{}: {}", style.bold(&model.name), model.note)?;
        }
        Ok(())
    }
}

fn cells(model: &ModelRow) -> [String; 10] {
    let seconds = |value: Option<f64>| value.map_or("-".to_owned(), |s| format!("{s:.3} s"));
    let pin = if model.pinned { " (pinned)" } else { "" };
    [
        model.name.clone(),
        format!("{}{pin}", model.state.name()),
        model.mechanism.map_or("-", |m| m.name()).to_owned(),
        model.running.to_string(),
        model.waiting.to_string(),
        resources(&model.resident),
        model.swaps_in.to_string(),
        seconds(model.last_in_s),
        seconds(model.last_out_s),
        model.cold_start_s.map_or("-".to_owned(), |s| format!("{s:.1} s")),
    ]
}

/// The phases of its start for people: `waiting 3.0 s (warming 2.1 s: 14.9 GiB of 14.9 GiB read), launched 1.2 s`.
fn phases(model: &ModelRow) -> String {
    let spoken = |phase: &StartPhase| format!("{} {:.1} s", phase.phase.name(), phase.seconds);
    let (beside, own): (Vec<&StartPhase>, Vec<_>) =
        model.start.iter().partition(|phase| phase.phase == Stage::Warming);
    let read = model.weights_read.map_or(String::new(), |(read, of)| format!(": {read} of {of} read"));
    let beside = beside.first().map_or(String::new(), |phase| format!(" ({}{read})", spoken(phase)));
    let own: Vec<String> = own.into_iter().map(spoken).collect();
    format!("{}{beside}", own.join(", "))
}

/// A footprint for people: `24.0 GiB + 24.0 GiB GPU, 1.2 GiB host, 1 slot`.
pub(super) fn resources(of: &Footprint) -> String {
    let mut parts = Vec::new();
    if of.gpu.iter().any(|bytes| *bytes > Bytes(0)) {
        parts.push(format!("{} GPU", of.gpu.iter().map(Bytes::to_string).collect::<Vec<_>>().join(" + ")));
    }
    if of.host > Bytes(0) {
        parts.push(format!("{} host", of.host));
    }
    if of.slots > 0 {
        parts.push(format!("{} slot{}", of.slots, if of.slots == 1 { "" } else { "s" }));
    }
    if parts.is_empty() { "-".to_owned() } else { parts.join(", ") }
}

/// A span of seconds for people, in whole seconds.
fn spoken(seconds: f64) -> String {
    humantime::format_duration(Duration::from_secs(seconds.max(0.0) as u64)).to_string()
}

/// Columns as wide as their widest cell.
pub(super) fn table<const N: usize>(
    out: &mut dyn Write,
    style: Style,
    heads: [&str; N],
    rows: &[[String; N]],
) -> io::Result<()> {
    let width = |at: usize| {
        rows.iter().map(|row| row[at].chars().count()).chain([heads[at].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}"));
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    writeln!(out, "{}", style.bold(&line(heads)))?;
    for row in rows {
        writeln!(out, "{}", line(std::array::from_fn(|at| row[at].as_str())))?;
    }
    Ok(())
}

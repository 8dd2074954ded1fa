//! `swapserve doctor`: what this node and job can do, each line with its remedy.

use super::{
    Globals, Outcome,
    exit::Exit,
    output::{Report, Style},
    service,
};
use crate::{
    daemon::Ground,
    gpu::capability::Capability,
    job,
    observe::{Finding, Verdict},
    process, topology,
};
use serde::Serialize;
use std::{
    io::{self, Write},
    process::ExitCode,
};

/// Everything that was looked at.
#[derive(Serialize)]
#[serde(transparent)]
struct Findings(Vec<Finding>);

/// Runs the verb; it fails if a run would not work here.
pub fn execute(globals: &Globals) -> Outcome {
    let findings = service::on_data_path(async { Ok(look(&Ground::find().await?)) })?;
    globals.output().show(&findings)?;
    let works = findings.0.iter().all(|finding| finding.verdict != Verdict::Fail);
    Ok(if works { ExitCode::SUCCESS } else { Exit::Unavailable.into() })
}

fn look(ground: &Ground) -> Findings {
    let mut all = job::doctor(&ground.job);
    all.extend(process::doctor());
    all.extend(topology::doctor(&ground.view, &ground.allowed()));
    all.extend(ground.gpus.capabilities.iter().map(gpu));
    Findings(all)
}

/// What is missing on the GPU side weakens a run on GPUs and means nothing to one without: never a failure.
fn gpu(capability: &Capability) -> Finding {
    let Capability { name, available, reason, remedy } = capability;
    let name = format!("gpu: {name}");
    if *available { Finding::ok(name, reason) } else { Finding::warn(name, reason, remedy) }
}

impl Report for Findings {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        for Finding { name, verdict, what, remedy } in &self.0 {
            let mark = match verdict {
                Verdict::Ok => style.good("ok  "),
                Verdict::Warn => style.warn("warn"),
                Verdict::Fail => style.bad("FAIL"),
            };
            writeln!(out, "{mark}  {name:22}  {what}")?;
            if let Some(remedy) = remedy.as_ref().filter(|remedy| !remedy.is_empty()) {
                writeln!(out, "{:30}{}", "", style.dim(&format!("→ {remedy}")))?;
            }
        }
        Ok(())
    }
}

//! `swapserve validate`: the config and every path in it, checked; nothing is started.

use super::{
    Exit, Globals, Outcome,
    args::ConfigArgs,
    output::{Report, Style},
    service,
};
use crate::{
    config::{self, Context, Limits, ModelPlan, Plan},
    daemon::Ground,
};
use std::io::{self, Write};

pub(super) fn execute(args: &ConfigArgs, globals: &Globals) -> Outcome {
    let plan = config::load(&args.config, &Context { limits: limits(), ..Context::default() })?;
    globals.output().show(&Valid(&plan))?;
    Ok(Exit::Success.into())
}

/// What the job has. Outside a job (on a login node) nothing is known of the one that will run, and what cannot be found
/// out is not checked.
fn limits() -> Option<Limits> {
    std::env::var_os("SLURM_JOB_ID")?;
    let ground = service::on_data_path(async { Ok(Ground::find().await?) }).ok()?;
    Some(ground.gpus.limits(&ground.job))
}

/// A config without mistakes.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Valid<'a>(&'a Plan);

impl Report for Valid<'_> {
    fn human(&self, out: &mut dyn Write, style: Style) -> io::Result<()> {
        writeln!(out, "{} {}", style.good("ok"), self.0.source.display())?;
        let width = self.0.models.iter().map(|m| m.name.chars().count()).max().unwrap_or(0);
        self.0.models.iter().try_for_each(|m| {
            writeln!(out, "  {:width$}  {}", m.name, line(m))?;
            match m.reach().warning() {
                Some(warning) => writeln!(out, "  {:width$}  {}", "", style.dim(&format!("→ {warning}"))),
                None => Ok(()),
            }
        })
    }
}

fn line(model: &ModelPlan) -> String {
    let ladder: Vec<_> = model.swap.iter().map(|m| m.name()).collect();
    let place = match (model.gpus, model.gpu_memory) {
        (0, _) => "CPU".to_owned(),
        (n, None) => format!("{n} GPU{}", if n == 1 { "" } else { "s" }),
        (n, Some(bytes)) => format!("{n} × {bytes}"),
    };
    format!("{:<13} {:<12} {}", model.engine.name(), place, ladder.join(", "))
}

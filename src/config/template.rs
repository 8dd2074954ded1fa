//! The words of a command, filled in at launch.
//!
//! minijinja templates, a value each: `{{ port }}`, `{{ socket }}`, `{{ model }}`, `{{ name }}`, `{{ api_key }}`,
//! `{{ gpu_memory_fraction }}`, `{{ gpus }}`, `{{ threads }}`, `{{ rundir }}`. Every template is filled once with sample
//! values when the config is checked, so that a launch does not fail on one.

use super::plan::ModelPlan;
use minijinja::{Environment, UndefinedBehavior, Value, context};
use std::{collections::BTreeMap, fmt, path::PathBuf};

/// What is only known at launch.
#[derive(Clone, Debug)]
pub struct TemplateValues {
    /// TCP port on 127.0.0.1, where the engine listens on one.
    pub port: Option<u16>,
    /// Path of the Unix socket, where the engine listens on one.
    pub socket: Option<PathBuf>,
    /// The engine's own key: random, one for each launch.
    pub api_key: String,
    /// The plan's `gpu_memory` as a fraction of its GPU's whole memory; `None` where the plan gives none.
    pub gpu_memory_fraction: Option<f64>,
    /// Cores the engine is bound to.
    pub threads: usize,
    /// The engine's own directory, mode 0700.
    pub rundir: PathBuf,
}

/// A command, ready to be started.
#[derive(Clone, PartialEq, Eq)]
pub struct RenderedCommand {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Variables added to the environment; they may hold the key.
    pub env: BTreeMap<String, String>,
    /// Files to write (mode 0600) before the start; they may hold the key.
    pub files: BTreeMap<PathBuf, String>,
}

/// Without the values that may hold the key.
impl fmt::Debug for RenderedCommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RenderedCommand").field("argv", &self.argv).finish_non_exhaustive()
    }
}

/// A template that cannot be filled.
#[derive(Debug, thiserror::Error)]
#[error("cannot fill the template {template:?} of model {model}: {reason}")]
pub struct TemplateError {
    /// The model.
    pub model: String,
    /// The template.
    pub template: String,
    /// What is wrong with it.
    pub reason: String,
}

/// The names that templates may use.
pub(super) const NAMES: [&str; 9] =
    ["port", "socket", "model", "name", "api_key", "gpu_memory_fraction", "gpus", "threads", "rundir"];

impl ModelPlan {
    /// The engine's command for one launch, wrapped in `apptainer exec` where the plan names an image.
    pub fn render(&self, values: &TemplateValues) -> Result<RenderedCommand, TemplateError> {
        let filler = Filler::new(self, values);
        let fill = |template: &String| filler.fill(template);
        let mut argv = self.command.iter().chain(&self.args).map(fill).collect::<Result<Vec<_>, _>>()?;
        if self.apptainer.is_some() {
            argv.splice(0..0, self.apptainer_words(values));
        }
        let env = self
            .env
            .iter()
            .map(|(name, value)| Ok((name.clone(), fill(value)?)))
            .collect::<Result<_, _>>()?;
        let file = |(name, text): (&String, &String)| Ok((values.rundir.join(name), fill(text)?));
        let files = self.files.iter().map(file).collect::<Result<_, _>>()?;
        Ok(RenderedCommand { argv, env, files })
    }

    /// The words before the command. Apptainer passes the environment on, and mounts home, /tmp and the working directory by
    /// itself; the run directory and the weights may be elsewhere.
    fn apptainer_words(&self, values: &TemplateValues) -> Vec<String> {
        let mut words = vec!["apptainer".to_owned(), "exec".to_owned()];
        if self.gpus > 0 {
            words.push("--nv".to_owned());
        }
        words.extend(["--bind".to_owned(), values.rundir.display().to_string()]);
        if self.model.starts_with('/') {
            words.extend(["--bind".to_owned(), format!("{0}:{0}:ro", self.model)]);
        }
        words.extend(self.apptainer.iter().map(|image| image.display().to_string()));
        words
    }
}

/// One launch's templates.
struct Filler<'a> {
    model: &'a str,
    environment: Environment<'static>,
    values: Value,
}

impl<'a> Filler<'a> {
    fn new(plan: &'a ModelPlan, values: &TemplateValues) -> Self {
        let values = context! {
            port => values.port.map_or(Value::UNDEFINED, Value::from),
            socket => values.socket.as_ref().map_or(Value::UNDEFINED, |path| path.display().to_string().into()),
            model => &plan.model,
            name => &plan.name,
            api_key => &values.api_key,
            gpu_memory_fraction => values.gpu_memory_fraction.map_or(Value::UNDEFINED, |f| fraction(f).into()),
            gpus => plan.gpus,
            threads => values.threads,
            rundir => values.rundir.display().to_string(),
        };
        Filler { model: &plan.name, environment: environment(), values }
    }

    fn fill(&self, template: &str) -> Result<String, TemplateError> {
        self.environment.render_str(template, &self.values).map_err(|error| TemplateError {
            model: self.model.to_owned(),
            template: template.to_owned(),
            reason: error.detail().map_or_else(|| error.kind().to_string(), str::to_owned),
        })
    }
}

/// Four digits, rounded down, so that an engine never takes more than it was given.
fn fraction(value: f64) -> String {
    format!("{:.4}", (value.clamp(0.0, 1.0) * 10_000.0).floor() / 10_000.0)
}

fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment
}

/// The names that a template uses, or why it is not one.
pub(super) fn names(template: &str) -> Result<Vec<String>, String> {
    let environment = environment();
    let template = environment
        .template_from_str(template)
        .map_err(|error| error.detail().map_or_else(|| error.kind().to_string(), str::to_owned))?;
    let mut names: Vec<_> = template.undeclared_variables(false).into_iter().collect();
    names.sort();
    Ok(names)
}

/// Fills one template with values of the right kinds.
pub(super) fn try_out(plan: &ModelPlan, template: &str) -> Result<(), String> {
    Filler::new(plan, &samples(plan)).fill(template).map(drop).map_err(|error| error.reason)
}

/// Whether a template uses a name.
pub(super) fn uses(template: &str, name: &str) -> bool {
    names(template).is_ok_and(|names| names.iter().any(|n| n == name))
}

/// Values of the right kinds, for checking templates without a launch.
pub(super) fn samples(plan: &ModelPlan) -> TemplateValues {
    TemplateValues {
        port: (!plan.unix_socket).then_some(40_000),
        socket: plan.unix_socket.then(|| "/run/swapserve/engine.sock".into()),
        api_key: "sample".to_owned(),
        gpu_memory_fraction: plan.gpu_memory.map(|_| 0.5),
        threads: 1,
        rundir: "/run/swapserve".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fraction_is_never_rounded_up() {
        assert_eq!(fraction(0.299_99), "0.2999");
        assert_eq!(fraction(24.0 / 80.0), "0.3000");
        assert_eq!(fraction(1.7), "1.0000");
    }

    #[test]
    fn the_names_of_a_template_are_known_before_it_is_filled() {
        assert_eq!(names("{{ name }}:{{ port }}").unwrap(), ["name", "port"]);
        assert!(names("{{ port").is_err());
    }
}

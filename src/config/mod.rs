//! `models.toml` to a checked [`Plan`].
//!
//! | step | file |
//! | --- | --- |
//! | text → sections and keys, each with its place | `raw`, `reader`, `values` |
//! | defaults, presets, paths → [`Plan`] | `resolve`, [`presets`], `paths` |
//! | what can be known before anything starts | `check`, `suggest` |
//! | every mistake, with file, line and remedy | `mistake` |
//! | words of a command, filled at launch | `template` |
//! | the JSON schema | [`schema`] |
//!
//! All mistakes are shown at once: each step notes what it finds and goes on as far as it makes sense. The rest of the
//! program sees only the plan. To add a key: `raw`, `resolve`, [`plan`], `docs/config.md`; to add an engine: [`presets`].

mod check;
mod mistake;
mod paths;
pub mod plan;
pub mod presets;
mod raw;
mod reader;
mod resolve;
pub mod schema;
mod suggest;
mod template;
mod values;

pub use mistake::{Code, Mistake, Mistakes};
pub use plan::{DisconnectPolicy, Hooks, ModelPlan, Plan, Preset};
pub use template::{RenderedCommand, TemplateError, TemplateValues};

use crate::units::Bytes;
use reader::FromToml;
use std::{net::IpAddr, path::Path};

/// What a config is checked against, and what the command line says instead of it.
#[derive(Clone, Debug, Default)]
pub struct Context {
    /// The job; without it nothing is said about GPUs and memory.
    pub limits: Option<Limits>,
    /// The endpoint's address, instead of the config's.
    pub host: Option<IpAddr>,
    /// The endpoint's port, instead of the config's.
    pub port: Option<u16>,
    /// The models are to run on another machine: programs, files and ports of this one say nothing.
    pub elsewhere: bool,
}

/// What the job has.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// Each GPU's whole memory.
    pub gpus: Vec<Bytes>,
    /// The job's memory limit; `None` where there is none.
    pub host: Option<Bytes>,
    /// Cores.
    pub cores: usize,
}

/// Reads and checks a config.
///
/// # Errors
/// All its mistakes. Nothing was started, written or left open; a port was bound for a moment.
pub fn load(file: &Path, context: &Context) -> Result<Plan, Mistakes> {
    let bytes = std::fs::read(file).map_err(|error| unreadable(file, &error))?;
    let text = String::from_utf8(bytes).map_err(|error| not_text(file, &error))?;
    let file = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
    parse(&file, &text, context)
}

/// Checks the text of a config; relative paths in it begin at the directory of `file`.
///
/// # Errors
/// All its mistakes.
pub fn parse(file: &Path, text: &str, context: &Context) -> Result<Plan, Mistakes> {
    let (document, faults) = toml::de::DeTable::parse_recoverable(text);
    let failed = |mistakes| Err(Mistakes::new(file, text, mistakes));
    if !faults.is_empty() {
        return failed(faults.iter().map(|fault| syntax(fault, text)).collect());
    }
    let mut mistakes = Vec::new();
    let span = document.span();
    let document = toml::Spanned::new(span, toml::de::DeValue::Table(document.into_inner()));
    let raw = raw::File::read(&document, "", &mut mistakes).unwrap_or_default();
    let base = file.parent().unwrap_or(Path::new(""));
    let no_gpu = context.limits.as_ref().is_some_and(|limits| limits.gpus.is_empty());
    let drafts = resolve::models(&raw, base, no_gpu, &mut mistakes);
    check::all(&raw, &drafts, context, &mut mistakes);
    if !mistakes.is_empty() {
        return failed(mistakes);
    }
    let mut plan = resolve::plan(file, &raw, drafts);
    plan.router.host = context.host.unwrap_or(plan.router.host);
    plan.router.port = context.port.unwrap_or(plan.router.port);
    Ok(plan)
}

fn unreadable(file: &Path, error: &std::io::Error) -> Mistakes {
    use std::io::ErrorKind;
    let help = match error.kind() {
        ErrorKind::NotFound => {
            format!("name the config with --config FILE or SWAPSERVE_CONFIG; {}", suggest::near_path(file))
        }
        ErrorKind::PermissionDenied => "let your user read it: chmod u+r".to_owned(),
        ErrorKind::IsADirectory => "name a file in it".to_owned(),
        _ => "look at the file system it is on".to_owned(),
    };
    let message = format!("cannot read {}: {error}", file.display());
    Mistakes::new(file, "", vec![Mistake::whole(Code::Unreadable, message, help)])
}

fn not_text(file: &Path, error: &std::string::FromUtf8Error) -> Mistakes {
    let good = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(error.as_bytes());
    let message = format!("{} is not UTF-8 text", file.display());
    let help = "save it as UTF-8: iconv -f latin1 -t utf-8";
    Mistakes::new(
        file,
        &*text,
        vec![Mistake::at(good..good, Code::NotText, message, help).label("from here on")],
    )
}

fn syntax(fault: &toml::de::Error, text: &str) -> Mistake {
    let message = format!("this is not TOML: {}", fault.message().trim_end());
    let help = "strings need quotes, tables look like [models.NAME], and each key stands once";
    match fault.span() {
        Some(span) => {
            Mistake::at(span.start.min(text.len())..span.end.min(text.len()), Code::Syntax, message, help)
        }
        None => Mistake::whole(Code::Syntax, message, help),
    }
}

//! Templates that cannot be filled, programs and files that are not there.

use crate::config::{
    mistake::{Code, Mistake},
    paths,
    plan::Preset,
    presets::Weights,
    reader::At,
    resolve::Draft,
    suggest, template,
};
use std::{ffi::OsString, path::Path};

pub(super) fn check(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let before = mistakes.len();
    templates(draft, mistakes);
    if mistakes.len() == before {
        address(draft, mistakes);
        programs(draft, mistakes);
    }
    files(draft, mistakes);
}

/// Each word that the user wrote, so that a mistake has its place; the presets' own are tested.
fn templates(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let raw = &draft.raw;
    let words = raw.command.iter().chain(&raw.args).flat_map(|at| &at.value.0);
    let variables = raw.env.iter().flat_map(|at| &at.value.0).map(|(_, value)| value);
    for word in words.chain(variables) {
        if let Some((message, help)) = fault(draft, &word.value) {
            mistakes.push(Mistake::at(word.span.clone(), Code::BadTemplate, message, help));
        }
    }
}

fn fault(draft: &Draft, text: &str) -> Option<(String, String)> {
    let plan = &draft.plan;
    let names = match template::names(text) {
        Ok(names) => names,
        Err(reason) => {
            let help = "templates look like {{ port }}; write {{ '{{' }} for two braces as they are";
            return Some((format!("{text:?} is not a template: {reason}"), help.to_owned()));
        }
    };
    names.iter().find_map(|name| match name.as_str() {
        "gpu_memory_fraction" if plan.gpu_memory.is_none() => Some((
            format!("{text:?} needs `gpu_memory`, which is not given"),
            "add gpu_memory = \"24GiB\", or leave the option out".to_owned(),
        )),
        "port" if plan.unix_socket => Some((
            format!("{text:?} uses {{{{ port }}}}, but this engine listens on a Unix socket"),
            "set unix_socket = false, or use only one of {{ port }} and {{ socket }}".to_owned(),
        )),
        "socket" if !plan.unix_socket => Some((
            format!("{text:?} uses {{{{ socket }}}}, but this engine listens on a port"),
            "use {{ port }}".to_owned(),
        )),
        known if template::NAMES.contains(&known) => None,
        other => Some((
            format!("{text:?} uses {{{{ {other} }}}}, which does not exist"),
            match suggest::closest(other, template::NAMES) {
                Some(meant) => format!("did you mean {{{{ {meant} }}}}?"),
                None => format!("there are: {}", template::NAMES.join(", ")),
            },
        )),
    })
}

/// A custom engine has to be told where to listen.
fn address(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let plan = &draft.plan;
    let told = || {
        let texts = plan.command.iter().chain(&plan.args).chain(plan.env.values());
        texts.flat_map(|text| template::names(text).unwrap_or_default()).any(|n| n == "port" || n == "socket")
    };
    if plan.engine == Preset::Custom && !plan.command.is_empty() && !told() {
        let message = format!("the command of {} does not say where to listen", plan.name);
        let help = "use {{ port }} (on 127.0.0.1) or {{ socket }} (a Unix socket's path) in `command`, `args` or `env`";
        mistakes.push(Mistake::at(draft.place(&draft.raw.command), Code::BadTemplate, message, help));
    }
}

fn programs(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let plan = &draft.plan;
    let Ok(rendered) = plan.render(&template::samples(plan)) else { return };
    let search = rendered.env.get("PATH").map(OsString::from).or_else(|| std::env::var_os("PATH"));
    if let Some(program) = rendered.argv.first().filter(|p| paths::program(p, search.as_deref()).is_none()) {
        let place = match (&plan.apptainer, &draft.raw.command) {
            (Some(_), _) => draft.place(&draft.raw.apptainer),
            (None, Some(command)) => {
                command.value.0.first().map_or(command.span.clone(), |word| word.span.clone())
            }
            (None, None) => draft.place(&draft.raw.engine),
        };
        mistakes.push(no_program(place, program));
    }
    let hooks = plan.hooks.iter().zip(&draft.raw.hooks);
    for (command, raw) in hooks.flat_map(|(h, raw)| [(&h.out, &raw.value.out), (&h.back, &raw.value.back)]) {
        match command.first() {
            None => {
                let help = "name the command to run";
                mistakes.push(Mistake::at(raw.span.clone(), Code::BadValue, "a hook is empty", help));
            }
            Some(program) if paths::program(program, search.as_deref()).is_none() => {
                mistakes.push(no_program(raw.span.clone(), program));
            }
            Some(_) => {}
        }
    }
}

fn no_program(place: std::ops::Range<usize>, program: &str) -> Mistake {
    let (message, help) = if !program.contains('/') {
        let help = format!(
            "load its module, activate its environment, or write its path: command = [\"/path/to/{program}\"]"
        );
        (format!("the program {program:?} is not on PATH"), help)
    } else if Path::new(program).exists() {
        (format!("the program {program} cannot be executed"), format!("chmod +x {program}"))
    } else {
        (format!("the program {program} does not exist"), suggest::near_path(Path::new(program)))
    };
    Mistake::at(place, Code::MissingProgram, message, help)
}

fn files(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let plan = &draft.plan;
    if let Some(model) = draft.raw.model.as_ref().filter(|_| plan.engine.facts().weights != Weights::Name) {
        let path = Path::new(&plan.model);
        if path.is_absolute() {
            exists(path, "are no weights", model, mistakes);
        }
    }
    if let (Some(image), Some(given)) = (&plan.apptainer, &draft.raw.apptainer)
        && !image.to_string_lossy().contains("://")
    {
        exists(image, "is no Apptainer image", given, mistakes);
    }
}

fn exists(path: &Path, what: &str, given: &At<String>, mistakes: &mut Vec<Mistake>) {
    let Err(error) = std::fs::metadata(path) else { return };
    let (message, help) = match error.kind() {
        std::io::ErrorKind::NotFound => {
            (format!("there {what} at {}", path.display()), suggest::near_path(path))
        }
        _ => (
            format!("cannot read {}: {error}", path.display()),
            "look at the permissions of the path, or ask its owner".to_owned(),
        ),
    };
    mistakes.push(Mistake::at(given.span.clone(), Code::MissingPath, message, help));
}

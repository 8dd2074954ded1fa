//! Templates that cannot be filled, programs and files that are not there.

use crate::config::{
    mistake::{Code, Mistake},
    paths,
    plan::Preset,
    presets::{Weights, When},
    reader::At,
    resolve::Draft,
    suggest, template,
};
use std::{ffi::OsString, io::Read, path::Path};

pub(super) fn check(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let before = mistakes.len();
    templates(draft, mistakes);
    if mistakes.len() == before {
        address(draft, mistakes);
        programs(draft, mistakes);
    }
    reserved(draft, mistakes);
    files(draft, mistakes);
}

/// Options that the preset gives: a second one would make the engine listen elsewhere, or take more than it was given.
fn reserved(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let facts = draft.plan.engine.facts();
    let memory =
        facts.options.iter().filter(|(when, _)| *when == When::GpuMemory && draft.plan.gpu_memory.is_some());
    let memory: Vec<_> = memory.filter_map(|(_, words)| words.first().copied()).collect();
    for word in draft.raw.args.iter().flat_map(|at| &at.value.0) {
        let option = word.value.split_once('=').map_or(word.value.as_str(), |(option, _)| option);
        let help = if facts.reserved.contains(&option) {
            "leave it out: swapserve says where the engine listens, under which name, and with which key"
        } else if memory.contains(&option) {
            "leave it out, or leave out `gpu_memory`, which sets it"
        } else {
            continue;
        };
        let message = format!("`args` sets {option}, which engine {:?} is given already", facts.name);
        mistakes.push(Mistake::at(word.span.clone(), Code::Conflict, message, help));
    }
}

/// Each word that the user wrote, so that a mistake has its place; the presets' own are tested.
fn templates(draft: &Draft, mistakes: &mut Vec<Mistake>) {
    let raw = &draft.raw;
    let words = raw.command.iter().chain(&raw.args).flat_map(|at| &at.value.0);
    let variables = raw.env.iter().flat_map(|at| &at.value.0).map(|(_, value)| value);
    for word in words.chain(variables) {
        if let Some((message, help)) = fault(draft, &word.value) {
            mistakes.push(Mistake::at(word.span.clone(), Code::BadTemplate, message, help));
        } else if let Err(reason) = template::try_out(&draft.plan, &word.value) {
            let message = format!("{:?} cannot be filled: {reason}", word.value);
            let help = "templates look like {{ port }}; write {{ '{{' }} for two braces as they are";
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
    // A program in a directory that only a launch makes cannot be looked for now.
    let known = |text: &str| template::names(text).is_ok_and(|names| names.is_empty());
    let first = rendered
        .argv
        .first()
        .filter(|_| plan.apptainer.is_some() || plan.command.first().is_some_and(|w| known(w)));
    if let Some(program) = first.filter(|p| paths::program(p, search.as_deref()).is_none()) {
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
    let weights = plan.engine.facts().weights;
    let path = Path::new(&plan.model);
    if let Some(given) = draft.raw.model.as_ref().filter(|_| weights != Weights::Name && path.is_absolute())
        && exists(path, "are no weights", given, mistakes)
    {
        readable(path, weights, given, mistakes);
    }
    if let (Some(image), Some(given)) = (&plan.apptainer, &draft.raw.apptainer)
        && !image.to_string_lossy().contains("://")
    {
        exists(image, "is no Apptainer image", given, mistakes);
    }
}

/// Weights that are there, but are not weights.
fn readable(path: &Path, weights: Weights, given: &At<String>, mistakes: &mut Vec<Mistake>) {
    let mut note = |message: String, help: &str| {
        mistakes.push(Mistake::at(given.span.clone(), Code::MissingPath, message, help));
    };
    if path.is_dir() {
        if weights == Weights::Path {
            note(format!("{} is a directory", path.display()), "name the .gguf file in it");
        }
        return;
    }
    let mut start = [0; 24];
    match std::fs::File::open(path).and_then(|mut file| file.read(&mut start)) {
        Err(error) => note(
            format!("cannot read {}: {error}", path.display()),
            "look at its permissions, or ask its owner",
        ),
        Ok(_) if start.starts_with(b"version https://git-lfs") => note(
            format!("{} is Git LFS's note of where the weights are, not the weights", path.display()),
            "fetch them: git lfs pull",
        ),
        Ok(_) => {}
    }
}

fn exists(path: &Path, what: &str, given: &At<String>, mistakes: &mut Vec<Mistake>) -> bool {
    let Err(error) = std::fs::metadata(path) else { return true };
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
    false
}

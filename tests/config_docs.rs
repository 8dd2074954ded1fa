//! The documentation holds what the program does: every key, every code, and examples that parse.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};
use swapserve::config::{self, Code, Context};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// Every Markdown file in these folders, and the README.
fn documents() -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = ["docs", "examples", "slurm"].iter().map(|name| root().join(name)).collect();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            match entry.path() {
                path if path.is_dir() => folders.push(path),
                path => found.push(path),
            }
        }
    }
    found.push(root().join("README.md"));
    found.retain(|path| path.extension().is_some_and(|e| e == "md") && path.is_file());
    found
}

/// The ```toml blocks of a Markdown text that describe models.
fn blocks(text: &str) -> Vec<String> {
    let parts = text.split("```toml\n").skip(1).filter_map(|part| part.split("```").next());
    parts.filter(|block| block.contains("[models.")).map(str::to_owned).collect()
}

/// Nothing is wrong with a config but what this machine lacks.
fn is_right(text: &str, origin: &Path) {
    let here = [Code::MissingPath, Code::MissingProgram];
    if let Err(mistakes) = config::parse(origin, text, &Context::default()) {
        let wrong: Vec<_> = mistakes.list().iter().filter(|m| !here.contains(&m.code)).collect();
        assert!(wrong.is_empty(), "{}: {wrong:#?}", origin.display());
    }
}

#[test]
fn every_block_is_right() {
    let markdown = documents();
    let blocks: Vec<_> =
        markdown.iter().flat_map(|file| blocks(&read(file)).into_iter().map(move |b| (file, b))).collect();
    assert!(blocks.len() >= 5, "the blocks are not found");
    blocks.iter().for_each(|(file, block)| is_right(block, file));
}

#[test]
fn the_reference_has_every_key_and_no_other() {
    let schema: serde_json::Value = serde_json::from_str(&config::schema::text()).unwrap();
    let reference = read("docs/config.md");
    for (section, title) in [
        ("Model", "[models.NAME]"),
        ("Router", "[router]"),
        ("Scheduler", "[scheduler]"),
        ("Memory", "[memory]"),
    ] {
        let keys: BTreeSet<_> =
            schema["$defs"][section]["properties"].as_object().unwrap().keys().cloned().collect();
        let part =
            reference.split(&format!("## {title}\n")).nth(1).expect(title).split("\n## ").next().unwrap();
        let rows = part.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        assert_eq!(rows.map(str::to_owned).collect::<BTreeSet<_>>(), keys, "{title} in docs/config.md");
    }
}

#[test]
fn the_reference_has_every_code_engine_and_mechanism() {
    let reference = read("docs/config.md");
    for code in Code::ALL {
        assert!(reference.contains(&format!("\n| `{code}` | ")), "code {code} in docs/config.md");
    }
    for facts in config::presets::TABLE.iter().filter(|facts| facts.name != "custom") {
        let row = format!("\n| `{}` | `{}` |", facts.name, facts.program.join(" "));
        assert!(reference.contains(&row), "engine {} in docs/config.md", facts.name);
    }
    for kind in swapserve::units::MechanismKind::ALL {
        assert!(reference.contains(&format!("\n| `{kind}` | ")), "mechanism {kind} in docs/config.md");
    }
}

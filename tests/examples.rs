//! The examples are configurations that this version understands.

use std::{
    fs,
    path::{Path, PathBuf},
};
use swapserve::config::{self, Code, Context};

/// Every `.toml` file under a folder of the checkout.
fn configs(folder: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let entries = fs::read_dir(&root).unwrap_or_else(|error| panic!("{}: {error}", root.display()));
    let paths = entries.map(|entry| entry.expect("the folder can be read").path());
    paths.filter(|path| path.extension().is_some_and(|e| e == "toml")).collect()
}

#[test]
fn every_example_is_understood() {
    let files: Vec<_> =
        ["examples", "examples/cpu", "tests/slurm", "benches/park"].iter().flat_map(|f| configs(f)).collect();
    assert!(files.len() >= 12, "{files:?}");
    for file in files {
        let Err(mistakes) = config::load(&file, &Context::default()) else { continue };
        // The weights and the engines are elsewhere on every site; all else must be right.
        let serious: Vec<_> = mistakes
            .list()
            .iter()
            .filter(|mistake| !matches!(mistake.code, Code::MissingPath | Code::MissingProgram))
            .collect();
        assert!(serious.is_empty(), "{}", mistakes.render(false));
    }
}

//! «Did you mean …»: names and paths close to what was written.

use std::path::{Path, PathBuf};

/// The candidate closest to `word`, if any is close enough to be a slip of the fingers.
pub(super) fn closest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let plain = normal(word);
    candidates
        .into_iter()
        .map(|candidate| (strsim::jaro_winkler(&plain, &normal(candidate)), candidate))
        .filter(|(likeness, _)| *likeness >= 0.84)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Case, hyphens and underscores make no difference to what is meant.
fn normal(word: &str) -> String {
    word.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// Says where the way to a missing path ends, and what in that directory has a similar name.
pub(super) fn near_path(path: &Path) -> String {
    let Some(parent) = path.ancestors().skip(1).find(|p| p.is_dir()) else {
        return "no part of this path exists".to_owned();
    };
    let missing = path.strip_prefix(parent).ok().and_then(|rest| rest.iter().next()).unwrap_or_default();
    let names = names_in(parent);
    let listed: Vec<_> = names.iter().filter_map(|name| name.to_str()).collect();
    // Short names are alike by chance: /proj is not /proc.
    let likely = |name: &&str| name.len() > 4;
    match closest(&missing.to_string_lossy(), listed.iter().copied().filter(likely)) {
        Some(name) => format!("did you mean {}?", parent.join(name).display()),
        None if names.is_empty() => format!("{} is there, but empty or not readable", parent.display()),
        None => format!("{} is there, but holds no {}", parent.display(), Path::new(missing).display()),
    }
}

/// Names in a directory; a bound, because shared file systems hold directories with millions of entries.
fn names_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.take(2000).map(|entry| PathBuf::from(entry.file_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_found_and_strangers_are_not() {
        let keys = ["gpu_memory", "host_memory", "start_timeout"];
        assert_eq!(closest("gpu-memory", keys), Some("gpu_memory"));
        assert_eq!(closest("start_timeuot", keys), Some("start_timeout"));
        assert_eq!(closest("colour", keys), None);
    }

    #[test]
    fn the_nearest_directory_and_a_similar_name_are_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("Llama-3.1-8B.gguf"), "").unwrap();
        let hint = near_path(&dir.path().join("llama3.1-8b.gguf"));
        assert_eq!(hint, format!("did you mean {}?", dir.path().join("Llama-3.1-8B.gguf").display()));
        let hint = near_path(&dir.path().join("sub/x"));
        assert_eq!(hint, format!("{} is there, but holds no sub", dir.path().display()));
    }
}

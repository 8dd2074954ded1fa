//! Paths and programs of a config: variables, `~`, relative to the config's directory, on PATH.

use std::{
    env,
    ffi::OsStr,
    path::{Component, Path, PathBuf},
};

/// Fills `$NAME`, `${NAME}` and a leading `~`; the name of the variable that is not set, if one is not.
pub(super) fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    if let Some(tail) = rest.strip_prefix('~').filter(|tail| tail.is_empty() || tail.starts_with('/')) {
        filled.push_str(&lookup("HOME").ok_or("HOME")?);
        rest = tail;
    }
    while let Some((before, after)) = rest.split_once('$') {
        filled.push_str(before);
        let (name, tail) = match after.strip_prefix('{').and_then(|braced| braced.split_once('}')) {
            Some(found) => found,
            None => after.split_at(
                after.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(after.len()),
            ),
        };
        filled.push_str(&lookup(name).ok_or(name)?);
        rest = tail;
    }
    Ok(filled + rest)
}

/// A variable of swapserve's own environment.
pub(super) fn variable(name: &str) -> Option<String> {
    env::var(name).ok()
}

/// Whether a `model` value is meant as a path rather than as a name on a hub.
pub(super) fn looks_like_path(text: &str) -> bool {
    ["/", "./", "../", "~/"].iter().any(|start| text.starts_with(start)) || text.ends_with(".gguf")
}

/// The path with `.` and `..` taken out where that needs no look at the disk.
pub(super) fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            // Above a symbolic link `..` means something else.
            Component::ParentDir if tidy.file_name().is_some() && !tidy.is_symlink() => {
                tidy.pop();
            }
            part => tidy.push(part),
        }
    }
    tidy
}

/// The file that a program's name stands for, looked up as `execvp` does.
pub(super) fn program(name: &str, search: Option<&OsStr>) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|file| executable(file));
    }
    env::split_paths(search?).map(|directory| directory.join(name)).find(|file| executable(file))
}

fn executable(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(name: &str) -> Option<String> {
        match name {
            "HOME" => Some("/home/me".to_owned()),
            "SCRATCH" => Some("/scratch/me".to_owned()),
            _ => None,
        }
    }

    #[test]
    fn variables_and_home_are_filled() {
        assert_eq!(expand("~/m", lookup).unwrap(), "/home/me/m");
        assert_eq!(expand("$SCRATCH/m", lookup).unwrap(), "/scratch/me/m");
        assert_eq!(expand("${SCRATCH}-2/m~", lookup).unwrap(), "/scratch/me-2/m~");
        assert_eq!(expand("$WORK/m", lookup), Err("WORK".to_owned()));
    }

    #[test]
    fn dots_are_taken_out() {
        assert_eq!(tidy(Path::new("/a/b/../../c/./d")), Path::new("/c/d"));
        assert_eq!(tidy(Path::new("../x")), Path::new("../x"));
    }

    #[test]
    fn a_program_is_looked_up_as_exec_does() {
        assert_eq!(program("sh", Some(OsStr::new("/nonexistent:/bin"))), Some(PathBuf::from("/bin/sh")));
        assert_eq!(program("sh", None), None);
        assert_eq!(program("/etc/passwd", None), None);
    }
}

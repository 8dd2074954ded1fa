//! An engine's log file: what is shown of it, and that it never fills the disk.
//!
//! Engines write to it themselves, in append mode, so nothing of ours stands between an engine and its log. A file that
//! has grown past [`LARGEST`] is cut: its last [`KEPT`] bytes become `NAME.log.1` and the file begins anew (append mode
//! goes on at its new end). Lines written during the cut are lost, as with logrotate's `copytruncate`.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::Duration,
};
use tokio::task::JoinHandle;

/// Bytes a log file may reach before it is cut.
const LARGEST: u64 = 64 << 20;
/// Bytes of it that are kept beside the new one.
const KEPT: u64 = 8 << 20;
/// How often its size is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// Bytes at its end in which a tail is looked for.
const TAIL_WINDOW: u64 = 64 << 10;

/// The file.
pub(super) struct EngineLog {
    path: PathBuf,
}

/// Watches the file's size for as long as it lives.
pub(super) struct Keeper(JoinHandle<()>);

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl EngineLog {
    pub(super) fn new(path: PathBuf) -> Self {
        EngineLog { path }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Its length, where a launch's own lines begin.
    pub(super) fn length(&self) -> u64 {
        std::fs::metadata(&self.path).map_or(0, |meta| meta.len())
    }

    /// Begins to watch its size.
    pub(super) fn keep(&self) -> Keeper {
        let path = self.path.clone();
        Keeper(tokio::spawn(async move {
            let mut look = tokio::time::interval(LOOK);
            look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                look.tick().await;
                if std::fs::metadata(&path).is_ok_and(|meta| meta.len() > LARGEST) {
                    let path = path.clone();
                    let cut =
                        tokio::task::spawn_blocking(move || cut(&path, KEPT).map_err(|error| (path, error)));
                    if let Ok(Err((path, error))) = cut.await {
                        tracing::warn!(path = %path.display(), %error, "cannot cut an engine's log file");
                    }
                }
            }
        }))
    }

    /// Its last `lines` lines, without `secret`.
    pub(super) fn tail(&self, lines: usize, secret: Option<&str>) -> String {
        self.tail_from(0, lines, secret)
    }

    /// The same of what was written after `begin`; before them, the first line there that names an error, where the tail
    /// does not reach back to it: of several processes the one that failed speaks first.
    pub(super) fn cause_from(&self, begin: u64, lines: usize, secret: Option<&str>) -> String {
        let all = self.lines_from(begin);
        let tail = all.len().saturating_sub(lines);
        let names_error = |line: &&String| ERRORS.iter().any(|word| line.contains(word));
        let cause = all[..tail].iter().find(names_error);
        let cause = cause.map(|cause| [cause.as_str(), "…"]).into_iter().flatten();
        let shown: Vec<&str> = cause.chain(all[tail..].iter().map(String::as_str)).collect();
        without(shown.join("\n"), secret)
    }

    fn lines_from(&self, begin: u64) -> Vec<String> {
        let text = self.read_end(begin).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines().map(last_overwrite).filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    /// The last lines of what was written after `begin`.
    pub(super) fn tail_from(&self, begin: u64, lines: usize, secret: Option<&str>) -> String {
        let all = self.lines_from(begin);
        without(all[all.len().saturating_sub(lines)..].join("\n"), secret)
    }

    fn read_end(&self, begin: u64) -> io::Result<Vec<u8>> {
        let mut file = File::open(&self.path)?;
        let length = file.metadata()?.len();
        // Past the end: the file was cut since.
        let begin = if begin > length { 0 } else { begin };
        file.seek(SeekFrom::Start(begin.max(length.saturating_sub(TAIL_WINDOW))))?;
        let mut text = Vec::new();
        file.take(TAIL_WINDOW).read_to_end(&mut text)?;
        Ok(text)
    }
}

/// Words of a line that says what went wrong, in Python and elsewhere.
const ERRORS: [&str; 4] = ["Error: ", "Exception: ", "error: ", "out of memory"];

fn without(text: String, secret: Option<&str>) -> String {
    match secret {
        Some(secret) if !secret.is_empty() => text.replace(secret, "****"),
        _ => text,
    }
}

/// A progress bar writes one line over and over, with carriage returns: its last state.
fn last_overwrite(line: &str) -> &str {
    line.trim_end().rsplit('\r').next().unwrap_or_default().trim_end()
}

fn cut(path: &Path, kept: u64) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(kept)))?;
    let older = path.with_extension("log.1");
    let mut kept_file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(older)?;
    io::copy(&mut (&file).take(kept), &mut kept_file)?;
    file.set_len(0)?;
    let line = format!("[swapserve: cut at {length} bytes; the last {kept} before are in the .1 file]\n");
    OpenOptions::new().append(true).open(path)?.write_all(line.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_with(text: &str) -> (tempfile::TempDir, EngineLog) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = EngineLog::new(dir.path().join("chat.log"));
        std::fs::write(log.path(), text).expect("it can be written");
        (dir, log)
    }

    #[test]
    fn a_tail_is_the_last_lines_without_bars_and_keys() {
        let (_dir, log) = log_with("one\ntwo sk-123 x\n\nLoading 1%\rLoading 50%\rLoading 100%\n");
        assert_eq!(log.tail(2, Some("sk-123")), "two **** x\nLoading 100%");
        assert_eq!(log.tail_from(4, 10, None), "two sk-123 x\nLoading 100%");
        assert_eq!(EngineLog::new("/nowhere/x.log".into()).tail(3, None), "");
    }

    #[test]
    fn the_first_error_is_shown_where_the_tail_does_not_reach_it() {
        let (_dir, log) = log_with(
            "(core) ValueError: no room for k-1\n(core) more\n(api) one\n(api) RuntimeError: see above\n",
        );
        assert_eq!(
            log.cause_from(0, 2, Some("k-1")),
            "(core) ValueError: no room for ****\n…\n(api) one\n(api) RuntimeError: see above"
        );
        assert_eq!(log.cause_from(0, 4, None).lines().count(), 4);
    }

    #[test]
    fn a_cut_keeps_the_end_and_writers_go_on_in_the_new_file() {
        let (_dir, log) = log_with("a long beginning\nthe end\n");
        let mut writer = OpenOptions::new().append(true).open(log.path()).expect("it is there");
        cut(log.path(), 8).expect("it can be cut");
        writeln!(writer, "afterwards").expect("the writer goes on");
        let older = std::fs::read_to_string(log.path().with_extension("log.1")).expect("the old end is kept");
        assert_eq!(older, "the end\n");
        assert_eq!(log.tail(1, None), "afterwards");
        assert!(log.length() < 200, "no hole of the old length is left at its beginning");
    }
}

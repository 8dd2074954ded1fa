//! The files that an engine reads when it starts, found out and read ahead of it, so that they lie in the page cache when
//! it wants them.
//!
//! They are read, not announced: `posix_fadvise(WILLNEED)` queues no more than a device's readahead window a call
//! (`force_page_cache_readahead` in the kernel's mm/readahead.c), and network file systems may ignore it. A few threads
//! that read large pieces are as fast as the file system gives, can be stopped at any moment, and never take more memory
//! than a piece each. Pages that are there already cost a copy.

use crate::{config::ModelPlan, units::Bytes};
use std::{
    collections::VecDeque,
    env, fs,
    fs::File,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tokio::sync::watch;

/// Threads that read: one stream alone leaves most of a parallel file system idle.
const READERS: usize = 4;
/// What one thread reads before it takes the next piece.
const PIECE: u64 = 64 << 20;
/// What it reads at once.
const BLOCK: usize = 4 << 20;
/// Files that engines load as weights.
const ENDINGS: [&str; 5] = ["safetensors", "gguf", "bin", "pt", "pth"];

/// The weight files of one model.
#[derive(Clone, Debug, Default)]
pub struct Weights {
    files: Vec<(PathBuf, u64)>,
}

impl Weights {
    /// Finds the files that the plan's `model` names: a file, a directory of weights, or a name whose snapshot lies in the
    /// Hugging Face cache. Empty where nothing is found, or where the engine is told to make its weights up.
    pub fn find(plan: &ModelPlan) -> Self {
        let dummy = plan
            .args
            .iter()
            .zip(plan.args.iter().skip(1))
            .any(|(key, value)| key == "--load-format" && value == "dummy");
        if plan.model.is_empty() || dummy || plan.args.iter().any(|arg| arg == "--load-format=dummy") {
            return Weights::default();
        }
        let path = Path::new(&plan.model);
        let mut files = if path.is_file() {
            parts_of(path)
        } else if path.is_dir() {
            weights_in(path)
        } else {
            let own = |name: &str| plan.env.get(name).cloned().or_else(|| env::var(name).ok());
            snapshot(&plan.model, own).map(|dir| weights_in(&dir)).unwrap_or_default()
        };
        files.sort();
        let size = |path: PathBuf| fs::metadata(&path).ok().map(|meta| (path, meta.len()));
        Weights { files: files.into_iter().filter_map(size).collect() }
    }

    /// Their size in all.
    pub fn bytes(&self) -> Bytes {
        self.files.iter().map(|(_, bytes)| Bytes(*bytes)).sum()
    }

    /// Begins to read them on threads of its own. Dropping every clone of the reading ends it.
    pub fn read_ahead(&self) -> Reading {
        let pieces = self.files.iter().flat_map(|(path, bytes)| {
            (0..*bytes).step_by(PIECE as usize).map(move |from| (path.clone(), from))
        });
        let work = Arc::new(Work {
            pieces: Mutex::new(pieces.collect()),
            read: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            took: Mutex::new(None),
        });
        let (end, ended) = watch::channel(());
        let begun = Instant::now();
        for _ in 0..READERS {
            let (work, end) = (work.clone(), end.clone());
            let reader = move || {
                work.read(begun);
                drop(end);
            };
            // A thread that cannot be had leaves its pieces to the others, or to the engine.
            let _ = thread::Builder::new().name("read ahead".to_owned()).spawn(reader);
        }
        Reading { total: self.bytes(), begun, ended, _stop: Arc::new(StopOnDrop(work.clone())), work }
    }
}

/// Weights that are being read, or have been.
#[derive(Clone, Debug)]
pub struct Reading {
    /// Bytes to be read in all.
    pub total: Bytes,
    begun: Instant,
    work: Arc<Work>,
    ended: watch::Receiver<()>,
    _stop: Arc<StopOnDrop>,
}

impl Reading {
    /// Bytes read so far.
    pub fn read(&self) -> Bytes {
        Bytes(self.work.read.load(Ordering::Relaxed))
    }

    /// How long it took, or has taken so far.
    pub fn time(&self) -> Duration {
        let took = *self.work.took.lock().unwrap_or_else(PoisonError::into_inner);
        took.unwrap_or_else(|| self.begun.elapsed())
    }

    /// Whether nothing is read any more.
    pub fn is_over(&self) -> bool {
        self.ended.has_changed().is_err()
    }

    /// Reads no further.
    pub fn stop(&self) {
        self.work.stop.store(true, Ordering::Relaxed);
    }

    /// Comes back when everything has been read, or it was stopped. The future holds the reading no longer open.
    pub fn over(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move { while ended.changed().await.is_ok() {} }
    }
}

#[derive(Debug)]
struct StopOnDrop(Arc<Work>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::Relaxed);
    }
}

/// What the threads share.
#[derive(Debug)]
struct Work {
    pieces: Mutex<VecDeque<(PathBuf, u64)>>,
    read: AtomicU64,
    stop: AtomicBool,
    took: Mutex<Option<Duration>>,
}

impl Work {
    /// One thread's share: a piece after another, in order, so that the first files are there first.
    fn read(&self, begun: Instant) {
        let mut block = vec![0; BLOCK];
        loop {
            let piece = self.pieces.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some((path, from)) = piece.filter(|_| !self.stop.load(Ordering::Relaxed)) else { break };
            // What cannot be read is the engine's to complain about.
            let Ok(file) = File::open(&path) else { continue };
            let mut at = from;
            while at < from + PIECE && !self.stop.load(Ordering::Relaxed) {
                let most = usize::try_from(from + PIECE - at).unwrap_or(BLOCK).min(BLOCK);
                match file.read_at(&mut block[..most], at) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        at += n as u64;
                        self.read.fetch_add(n as u64, Ordering::Relaxed);
                    }
                }
            }
        }
        *self.took.lock().unwrap_or_else(PoisonError::into_inner) = Some(begun.elapsed());
    }
}

/// The file, and the others of a model in parts (`x-00001-of-00003.gguf`).
fn parts_of(file: &Path) -> Vec<PathBuf> {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let split = name.strip_suffix(".gguf").and_then(|stem| {
        let (head, many) = stem.rsplit_once("-of-")?;
        let (head, first) = head.rsplit_once('-')?;
        let digits = |text: &str| text.len() == 5 && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(first) && digits(many)).then(|| (head.to_owned(), many.to_owned()))
    });
    let Some((head, many)) = split else { return vec![file.to_owned()] };
    let parts = 1..=many.parse::<u32>().unwrap_or(0).min(999);
    let parts = parts.map(|part| file.with_file_name(format!("{head}-{part:05}-of-{many}.gguf")));
    parts.filter(|part| part.is_file()).collect()
}

/// The weight files right in a directory; where there are some in the format that engines prefer, those alone.
fn weights_in(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let all: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    let of = |ending: &str| -> Vec<PathBuf> {
        let fits = |path: &&PathBuf| path.extension().is_some_and(|its| its == ending);
        all.iter().filter(fits).cloned().collect()
    };
    ENDINGS.iter().map(|ending| of(ending)).find(|files| !files.is_empty()).unwrap_or_default()
}

/// Where the Hugging Face cache keeps `name` (huggingface_hub, "Understand caching"): `hub/models--ORG--NAME/snapshots/`,
/// the revision that `refs/main` names.
fn snapshot(name: &str, variable: impl Fn(&str) -> Option<String>) -> Option<PathBuf> {
    let below = |root: &str, path: &str| variable(root).map(|root| Path::new(&root).join(path));
    let hub = below("HF_HUB_CACHE", "")
        .or_else(|| below("HUGGINGFACE_HUB_CACHE", ""))
        .or_else(|| below("HF_HOME", "hub"))
        .or_else(|| below("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| below("HOME", ".cache/huggingface/hub"))?;
    let repository = hub.join(format!("models--{}", name.replace('/', "--")));
    let revision = fs::read_to_string(repository.join("refs/main")).ok()?;
    Some(repository.join("snapshots").join(revision.trim())).filter(|dir| dir.is_dir())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(path: &Path, bytes: usize) {
        fs::create_dir_all(path.parent().expect("a file in a directory")).expect("it can be made");
        fs::write(path, vec![7; bytes]).expect("it can be written");
    }

    #[test]
    fn a_directory_is_its_preferred_files() {
        let dir = tempfile::tempdir().expect("a directory");
        put(&dir.path().join("model-00001-of-00002.safetensors"), 10);
        put(&dir.path().join("model-00002-of-00002.safetensors"), 20);
        put(&dir.path().join("pytorch_model.bin"), 30);
        put(&dir.path().join("tokenizer.json"), 40);
        assert_eq!(weights_in(dir.path()).len(), 2);
    }

    #[test]
    fn a_model_in_parts_is_all_of_them() {
        let dir = tempfile::tempdir().expect("a directory");
        let part = |n| dir.path().join(format!("q-0000{n}-of-00003.gguf"));
        (1..=3).for_each(|n| put(&part(n), 1));
        assert_eq!(parts_of(&part(1)), [part(1), part(2), part(3)]);
        let alone = dir.path().join("q8_0.gguf");
        assert_eq!(parts_of(&alone), vec![alone]);
    }

    #[test]
    fn a_name_is_looked_up_in_the_cache() {
        let home = tempfile::tempdir().expect("a directory");
        let repository = home.path().join("hub/models--org--m");
        put(&repository.join("snapshots/abc/model.safetensors"), 5);
        fs::create_dir_all(repository.join("refs")).expect("it can be made");
        fs::write(repository.join("refs/main"), "abc").expect("it can be written");
        let variable = |name: &str| (name == "HF_HOME").then(|| home.path().display().to_string());
        assert_eq!(snapshot("org/m", variable), Some(repository.join("snapshots/abc")));
        assert_eq!(snapshot("org/other", variable), None);
    }

    #[tokio::test]
    async fn every_byte_is_read_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let sizes = [1, BLOCK, BLOCK + 1, 3 * BLOCK];
        let files = sizes.iter().enumerate().map(|(at, bytes)| {
            let path = dir.path().join(format!("{at}.bin"));
            put(&path, *bytes);
            (path, *bytes as u64)
        });
        let weights = Weights { files: files.collect() };
        let reading = weights.read_ahead();
        reading.over().await;
        assert!(reading.is_over());
        assert_eq!(reading.read(), weights.bytes());
    }

    #[tokio::test]
    async fn what_is_stopped_ends() {
        let gone = Weights { files: vec![(PathBuf::from("/nonexistent"), 1 << 40)] };
        let reading = gone.read_ahead();
        let over = reading.over();
        drop(reading);
        over.await;
    }
}

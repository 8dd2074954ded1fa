//! For tests: a shared folder, the two libraries built and put where the loader finds them, and the environment
//! that a child needs to be on that machine.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::{fs, io};

use crate::config::{Gpu, Machine};
use crate::table::Table;

/// A machine of host memory for one test. Its folder is removed when it is dropped.
#[derive(Debug)]
pub struct Lab {
    directory: PathBuf,
    table: Table,
}

impl Lab {
    /// A machine with `count` GPUs of `bytes` each.
    pub fn new(count: usize, bytes: u64) -> io::Result<Self> {
        Self::with(Machine { gpus: vec![Gpu { bytes, node: None }; count], ..Machine::default() })
    }

    /// That machine.
    pub fn with(machine: Machine) -> io::Result<Self> {
        let directory = unique_directory()?;
        fs::write(directory.join("gpus"), machine.text())?;
        let libraries = directory.join("lib");
        fs::create_dir(&libraries)?;
        let built = built_libraries();
        for (file, names) in [
            ("libsoftware_cuda.so", ["libcuda.so.1", "libcuda.so"]),
            ("libsoftware_nvml.so", ["libnvidia-ml.so.1", "libnvidia-ml.so"]),
        ] {
            for name in names {
                // Under the driver's own name also in a process's list of mappings, which shows what a link points to.
                let (from, to) = (built.join(file), libraries.join(name));
                fs::hard_link(&from, &to).or_else(|_| fs::copy(&from, &to).map(|_| ()))?;
            }
        }
        let table = Table::open(&directory)?;
        Ok(Self { directory, table })
    }

    /// What a child's environment needs to be on this machine.
    pub fn environment(&self) -> Vec<(String, String)> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        vec![
            (crate::DIRECTORY_VARIABLE.to_owned(), text(&self.directory)),
            ("LD_LIBRARY_PATH".to_owned(), text(&self.directory.join("lib"))),
        ]
    }

    /// The records, to look at what processes hold.
    pub fn table(&self) -> &Table {
        &self.table
    }

    /// The shared folder.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Replaces the faults to inject; see [`crate::faults`] for the lines.
    pub fn set_faults(&self, lines: &str) -> io::Result<()> {
        let scratch = self.directory.join("faults.new");
        fs::write(&scratch, lines)?;
        fs::rename(scratch, self.directory.join("faults"))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is left behind in a temporary folder harms nobody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Builds one package of the workspace, once a process, and returns the folder with its outputs.
pub fn build(packages: &[&str]) -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args([
        "build",
        "--quiet",
        "--manifest-path",
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../../Cargo.toml"),
    ]);
    for package in packages {
        command.args(["--package", package]);
    }
    let status = command.status().expect("cargo, which built this test, can be run");
    assert!(status.success(), "cargo build of {packages:?} failed");
    target_directory().join("debug")
}

fn target_directory() -> PathBuf {
    // A test program lies in TARGET/PROFILE/deps.
    let program = std::env::current_exe().expect("a running program has a path");
    program.ancestors().nth(3).expect("TARGET/PROFILE/deps/PROGRAM").to_owned()
}

fn built_libraries() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| build(&["software-cuda", "software-nvml"]))
}

fn unique_directory() -> io::Result<PathBuf> {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let next = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = std::env::temp_dir().join(format!("software-gpu-{}-{next}", std::process::id()));
    fs::create_dir_all(&path)?;
    Ok(path)
}

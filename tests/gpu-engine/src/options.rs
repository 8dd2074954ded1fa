//! The command line.

use std::path::PathBuf;

use crate::cuda::Reach;

/// What the engine is to hold and where it listens.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// TCP port on 127.0.0.1; 0 takes a free one and prints it.
    pub port: u16,
    /// Name in `/v1/models`; also what its memory is filled by.
    pub model: String,
    /// Bytes that stay through a sleep.
    pub weights: u64,
    /// Bytes that a sleep gives up.
    pub cache: u64,
    /// Share of the GPU that has to be free at the start.
    pub utilization: Option<f64>,
    /// Child processes that hold as much.
    pub workers: u32,
    /// Weights in managed memory.
    pub managed: bool,
    /// A worker imports memory by file descriptor.
    pub imported: bool,
    /// A worker maps memory by legacy IPC handle.
    pub ipc: bool,
    /// Loading, as far as `/health` tells, while this file is there.
    pub hold: Option<String>,
    /// Print NVIDIA descriptors and mappings.
    pub print_maps: bool,
    /// Measure the bus and end.
    pub bus: bool,
    /// How the driver's functions are found.
    pub reach: Reach,
    /// This process is a worker.
    pub worker: bool,
    /// Workers hold their memory before this process touches the driver.
    pub workers_first: bool,
    /// A file that this process waits for before anything touches the driver, as a long import would.
    pub import_until: Option<PathBuf>,
    /// A file that it waits for before it listens, as a long load would.
    pub load_until: Option<PathBuf>,
    /// Listens before it touches the driver, which it does when it is asked for something.
    pub lazy: bool,
    /// In a worker: the descriptor to import.
    pub import_fd: Option<i32>,
    /// In a worker: the legacy IPC handle in hexadecimal.
    pub import_handle: Option<String>,
}

impl Options {
    /// Understands `--key value` and `--flag`.
    pub fn from_arguments(arguments: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut options = Self { model: "gpu-engine".to_owned(), weights: 64 << 20, ..Self::default() };
        let mut arguments = arguments;
        while let Some(key) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{key} needs a value"));
            match key.as_str() {
                "--port" => options.port = number(&value()?)? as u16,
                "--model" => options.model = value()?,
                "--weights" => options.weights = number(&value()?)?,
                "--cache" => options.cache = number(&value()?)?,
                "--utilization" => {
                    let share = value()?;
                    options.utilization = Some(share.parse().map_err(|error| format!("{share}: {error}"))?);
                }
                "--workers" => options.workers = number(&value()?)? as u32,
                "--managed" => options.managed = true,
                "--imported" => options.imported = true,
                "--ipc" => options.ipc = true,
                "--hold" => options.hold = Some(value()?),
                "--print-maps" => options.print_maps = true,
                "--bus" => options.bus = true,
                // What vLLM is given; this engine always can.
                "--enable-sleep-mode" => {}
                "--reach" => {
                    let name = value()?;
                    options.reach = Reach::named(&name).ok_or(format!("no way to the driver: {name}"))?;
                }
                "--workers-first" => options.workers_first = true,
                "--import-until" => options.import_until = Some(value()?.into()),
                "--load-until" => options.load_until = Some(value()?.into()),
                "--lazy" => options.lazy = true,
                "--worker" => options.worker = true,
                "--import-fd" => options.import_fd = Some(number(&value()?)? as i32),
                "--import-handle" => options.import_handle = Some(value()?),
                _ => return Err(format!("unknown option {key}")),
            }
        }
        if options.workers_first && (options.imported || options.ipc) {
            return Err("--workers-first leaves nothing to share".to_owned());
        }
        if (options.imported || options.ipc || options.workers_first) && options.workers == 0 {
            options.workers = 1;
        }
        Ok(options)
    }
}

/// A number, with `KiB`, `MiB` or `GiB` behind it if wanted.
fn number(text: &str) -> Result<u64, String> {
    let (digits, shift) = [("KiB", 10), ("MiB", 20), ("GiB", 30)]
        .into_iter()
        .find_map(|(unit, shift)| Some((text.strip_suffix(unit)?, shift)))
        .unwrap_or((text, 0));
    digits.trim().parse::<u64>().map(|number| number << shift).map_err(|error| format!("{text}: {error}"))
}

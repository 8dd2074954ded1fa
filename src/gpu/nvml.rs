//! Memory by NVML, per GPU and per process, and which NVML device is which CUDA ordinal.
//!
//! NVML knows nothing of `CUDA_VISIBLE_DEVICES`, and CUDA may order devices in another way, so the two are matched
//! by UUID. NVML's numbers may lag about a second behind a checkpoint: whoever needs free memory waits for it here.

use nvml_wrapper::Nvml as Library;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use std::time::{Duration, Instant};

use super::capability::Capability;
use super::driver::Device;
use super::protocol::{Gpu, GpuMemory, ProcessMemory, Refusal};

/// The steps of the wait for free memory: first this long …
const FIRST_STEP: Duration = Duration::from_micros(500);
/// … doubled up to this long.
const LONGEST_STEP: Duration = Duration::from_millis(4);

/// NVML, with the job's GPUs in CUDA's order.
#[derive(Debug)]
pub struct Nvml {
    library: Library,
    /// NVML index of each CUDA ordinal.
    indices: Vec<Option<u32>>,
}

impl Nvml {
    /// Loads NVML and finds the driver's devices in it.
    ///
    /// # Errors
    /// The capability that is missing.
    pub fn load(devices: &[Device]) -> Result<Self, Capability> {
        let library = Library::init().map_err(|error| {
            let remedy =
                "libnvidia-ml.so.1 comes with the driver; in a container pass it through (apptainer --nv)";
            Capability::missing("nvml", error.to_string(), remedy)
        })?;
        let indices = devices.iter().map(|device| find(&library, device)).collect();
        Ok(Self { library, indices })
    }

    /// The driver's own version, `580.159.04`.
    pub fn driver_version(&self) -> Option<String> {
        self.library.sys_driver_version().ok()
    }

    /// A device with what NVML adds to the driver's description.
    pub fn describe(&self, device: &Device) -> Gpu {
        let index = self.indices.get(device.ordinal as usize).copied().flatten();
        let known = index.and_then(|index| self.library.device_by_index(index).ok());
        let gpu = Gpu { nvml_index: index, ..without_nvml(device) };
        match known {
            Some(known) => Gpu {
                uuid: known.uuid().unwrap_or(gpu.uuid),
                mig: known.mig_mode().is_ok_and(|mode| mode.current != 0),
                ..gpu
            },
            None => gpu,
        }
    }

    /// Memory of one of the job's GPUs.
    ///
    /// # Errors
    /// NVML's refusal.
    pub fn memory(&self, gpu: u32) -> Result<GpuMemory, Refusal> {
        let read = || -> Result<GpuMemory, NvmlError> {
            let info = self.library.device_by_index(self.index(gpu)?)?.memory_info()?;
            Ok(GpuMemory { total: info.total, free: info.free, used: info.used })
        };
        read().map_err(|error| refusal("nvmlDeviceGetMemoryInfo", gpu, &error))
    }

    /// What each process holds on each of the job's GPUs, strangers included.
    ///
    /// # Errors
    /// NVML's refusal.
    pub fn processes(&self) -> Result<Vec<ProcessMemory>, Refusal> {
        let mut found = Vec::new();
        for (gpu, index) in (0u32..).zip(&self.indices) {
            let Some(index) = *index else { continue };
            let list = self
                .library
                .device_by_index(index)
                .and_then(|device| device.running_compute_processes())
                .map_err(|error| refusal("nvmlDeviceGetComputeRunningProcesses", gpu, &error))?;
            found.extend(list.into_iter().map(|process| ProcessMemory {
                gpu,
                pid: process.pid as i32,
                bytes: match process.used_gpu_memory {
                    UsedGpuMemory::Used(bytes) => Some(bytes),
                    UsedGpuMemory::Unavailable => None,
                },
            }));
        }
        Ok(found)
    }

    /// Waits until `bytes` are free on a GPU, or `limit` has passed; the memory as last seen.
    ///
    /// # Errors
    /// NVML's refusal.
    pub fn await_free(&self, gpu: u32, bytes: u64, limit: Duration) -> Result<GpuMemory, Refusal> {
        look_until(limit, || self.memory(gpu), |memory| memory.free >= bytes)
    }

    /// Waits until none of `pids` holds memory, or `limit` has passed; what they still hold. A process for which
    /// NVML has no number counts as holding nothing.
    ///
    /// # Errors
    /// NVML's refusal.
    pub fn await_released(&self, pids: &[i32], limit: Duration) -> Result<Vec<ProcessMemory>, Refusal> {
        let held = || {
            let mut list = self.processes()?;
            list.retain(|process| {
                pids.contains(&process.pid) && process.bytes.is_some_and(|bytes| bytes > 0)
            });
            Ok(list)
        };
        look_until(limit, held, Vec::is_empty)
    }

    fn index(&self, gpu: u32) -> Result<u32, NvmlError> {
        self.indices.get(gpu as usize).copied().flatten().ok_or(NvmlError::NotFound)
    }
}

/// Looks again and again, in short steps, until what is seen is `enough` or `limit` has passed.
fn look_until<T>(
    limit: Duration,
    look: impl Fn() -> Result<T, Refusal>,
    enough: impl Fn(&T) -> bool,
) -> Result<T, Refusal> {
    let begun = Instant::now();
    let mut step = FIRST_STEP;
    loop {
        let seen = look()?;
        if enough(&seen) || begun.elapsed() >= limit {
            return Ok(seen);
        }
        std::thread::sleep(step);
        step = (step * 2).min(LONGEST_STEP);
    }
}

/// A device as the driver alone describes it.
pub fn without_nvml(device: &Device) -> Gpu {
    Gpu {
        ordinal: device.ordinal,
        nvml_index: None,
        uuid: uuid_text(&device.uuid, "GPU"),
        name: device.name.clone(),
        pci_bus_id: device.pci_bus_id.clone(),
        total: device.total,
        numa_node: numa_node(&device.pci_bus_id),
        mig: false,
    }
}

/// A UUID as NVML writes it. The driver gives 16 bytes without saying whether they name a GPU or a MIG instance.
fn uuid_text(bytes: &[u8; 16], kind: &str) -> String {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{kind}-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// NVML index of a CUDA device, by UUID and, for a MIG instance, by the place of the GPU that it is part of.
fn find(library: &Library, device: &Device) -> Option<u32> {
    library
        .device_by_uuid(uuid_text(&device.uuid, "GPU"))
        .or_else(|_| library.device_by_pci_bus_id(device.pci_bus_id.as_str()))
        .and_then(|found| found.index())
        .ok()
}

/// The NUMA node that the kernel names for a PCI device (`/sys/bus/pci/devices/*/numa_node`; -1: none).
fn numa_node(pci_bus_id: &str) -> Option<u32> {
    std::fs::read_to_string(format!("/sys/bus/pci/devices/{pci_bus_id}/numa_node")).ok()?.trim().parse().ok()
}

fn refusal(function: &str, gpu: u32, error: &NvmlError) -> Refusal {
    Refusal {
        function: function.to_owned(),
        on: format!("GPU {gpu}"),
        code: 0,
        name: format!("{error:?}"),
        text: error.to_string(),
    }
}

//! The file `gpus`: the machine that the software libraries pretend to be.
//!
//! One setting a line:
//!
//! ```text
//! gpu 17179869184                    # bytes; may be followed by a device node that must open
//! gpu 17179869184 /dev/fake/nvidia1
//! context 268435456                  # bytes that a process's context takes on a GPU
//! out_mib_s 2048                     # speed of a checkpoint; 0 or absent: at once
//! in_mib_s 5120                      # speed of a restore
//! nvml_lag_ms 300                    # how long NVML still shows bytes that a checkpoint has freed
//! driver 13000                       # what cuDriverGetVersion says
//! mig                                # the GPUs are cut into MIG instances
//! lacks 102                          # a device attribute that is 0 here, by its number in CUdevice_attribute
//! ```

use std::path::Path;

/// One GPU of the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Memory in bytes.
    pub bytes: u64,
    /// A device node that must be openable for the GPU to be seen, as under Slurm's device cgroup.
    pub node: Option<String>,
}

/// The whole machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// The GPUs in the order of their place on the bus.
    pub gpus: Vec<Gpu>,
    /// Bytes that one process's context takes on one GPU.
    pub context: u64,
    /// MiB a second of a checkpoint; 0: at once.
    pub out_mib_s: u64,
    /// MiB a second of a restore; 0: at once.
    pub in_mib_s: u64,
    /// Milliseconds for which NVML still counts bytes that a checkpoint has freed.
    pub nvml_lag_ms: u64,
    /// Driver version as `cuDriverGetVersion` counts it: 1000 × major + 10 × minor.
    pub driver: i32,
    /// Whether NVML reports the MIG mode.
    pub mig: bool,
    /// Device attributes that are 0, by number.
    pub lacks: Vec<i32>,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            gpus: Vec::new(),
            context: 0,
            out_mib_s: 0,
            in_mib_s: 0,
            nvml_lag_ms: 0,
            driver: 13000,
            mig: false,
            lacks: Vec::new(),
        }
    }
}

impl Machine {
    /// Reads the file `gpus` of a shared folder. Lines that are not understood are left out; a missing file is a
    /// machine without GPUs.
    pub fn read(directory: &Path) -> Self {
        let text = std::fs::read_to_string(directory.join("gpus")).unwrap_or_default();
        Self::parse(&text)
    }

    /// Understands the text of the file `gpus`.
    pub fn parse(text: &str) -> Self {
        let mut machine = Self::default();
        for line in text.lines() {
            let mut words = line.split('#').next().unwrap_or_default().split_whitespace();
            let (Some(key), value) = (words.next(), words.next()) else { continue };
            let number = value.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
            match key {
                "gpu" => machine.gpus.push(Gpu { bytes: number, node: words.next().map(str::to_owned) }),
                "context" => machine.context = number,
                "out_mib_s" => machine.out_mib_s = number,
                "in_mib_s" => machine.in_mib_s = number,
                "nvml_lag_ms" => machine.nvml_lag_ms = number,
                "driver" => machine.driver = number as i32,
                "mig" => machine.mig = true,
                "lacks" => machine.lacks.push(number as i32),
                _ => {}
            }
        }
        machine.gpus.truncate(crate::MAX_GPUS);
        machine
    }

    /// The text that [`Machine::parse`] reads back.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for gpu in &self.gpus {
            text += &format!("gpu {} {}\n", gpu.bytes, gpu.node.as_deref().unwrap_or_default());
        }
        text +=
            &format!("context {}\nout_mib_s {}\nin_mib_s {}\n", self.context, self.out_mib_s, self.in_mib_s);
        text += &format!("nvml_lag_ms {}\ndriver {}\n", self.nvml_lag_ms, self.driver);
        if self.mig {
            text += "mig\n";
        }
        self.lacks.iter().for_each(|attribute| text += &format!("lacks {attribute}\n"));
        text
    }

    /// Indices of the GPUs whose device node, where one is named, can be opened by this process.
    pub fn reachable(&self) -> Vec<usize> {
        let opens = |node: &String| {
            let refused = [libc::EPERM, libc::EACCES, libc::ENOENT];
            match std::fs::File::open(node) {
                Ok(_) => true,
                Err(error) => !error.raw_os_error().is_some_and(|code| refused.contains(&code)),
            }
        };
        (0..self.gpus.len()).filter(|&index| self.gpus[index].node.as_ref().is_none_or(opens)).collect()
    }

    /// The GPUs that CUDA shows in a process: the reachable ones, filtered and ordered by the value of
    /// `CUDA_VISIBLE_DEVICES`. As the driver does, the list ends at the first entry that names no GPU.
    pub fn visible(&self, variable: Option<&str>) -> Vec<usize> {
        let reachable = self.reachable();
        let Some(variable) = variable else { return reachable };
        let mut visible = Vec::new();
        for entry in variable.split(',').map(str::trim) {
            let found = match entry.parse::<usize>() {
                Ok(ordinal) => reachable.get(ordinal).copied(),
                Err(_) => reachable.iter().copied().find(|&index| {
                    !entry.is_empty() && crate::uuid_text(crate::uuid(index)).starts_with(entry)
                }),
            };
            match found {
                Some(index) if !visible.contains(&index) => visible.push(index),
                _ => break,
            }
        }
        visible
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two() -> Machine {
        Machine::parse("gpu 100\ngpu 200 # second\ncontext 5\nmig\nlacks 102\n")
    }

    #[test]
    fn text_reads_back() {
        let machine = two();
        assert_eq!(Machine::parse(&machine.text()), machine);
        assert_eq!(machine.gpus[1].bytes, 200);
    }

    #[test]
    fn visible_devices_order_filter_and_end_at_the_first_unknown() {
        let machine = two();
        assert_eq!(machine.visible(None), [0, 1]);
        assert_eq!(machine.visible(Some("1,0")), [1, 0]);
        assert_eq!(machine.visible(Some("1,7,0")), [1]);
        assert_eq!(machine.visible(Some("")), [] as [usize; 0]);
        assert_eq!(machine.visible(Some(&crate::uuid_text(crate::uuid(1)))), [1]);
    }

    #[test]
    fn a_gpu_whose_node_is_missing_is_not_seen() {
        let machine = Machine::parse("gpu 100 /nonexistent/nvidia0\ngpu 200\n");
        assert_eq!(machine.visible(Some("0")), [1]);
    }
}

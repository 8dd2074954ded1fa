//! The driver's functions, looked up one by one in `libcuda.so.1`.
//!
//! A function that the driver does not have is a reason, never a panic: the checkpoint API came with driver 570
//! (CUDA 12.8), and on a machine without a driver nothing is there at all. Contracts of the functions: NVIDIA's
//! CUDA driver API manual, chapters *Initialization*, *Device Management* and *Checkpointing*.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::time::Duration;

use cudarc::driver::sys;

use super::capability::Capability;
use super::protocol::{ProcessState, Refusal};

/// Driver version that brought the checkpoint API.
const CHECKPOINT_SINCE: c_int = 12080;

/// The arguments of every checkpoint function: 64 bytes, reserved ones zero. Only a lock's has a field in use.
#[repr(C, align(8))]
#[derive(Debug, Default)]
pub struct Arguments {
    timeout_ms: u32,
    reserved: [u32; 15],
}

macro_rules! function_table {
    ($($(#[$doc:meta])* $name:ident($($kind:ty),*);)*) => {
        /// Addresses of the driver's functions; nothing for those that this driver does not have.
        #[allow(non_snake_case, reason = "the names are NVIDIA's")]
        #[derive(Debug)]
        struct Functions { $($(#[$doc])* $name: Option<unsafe extern "C" fn($($kind),*) -> c_int>,)* }

        impl Functions {
            /// Looks every function up; the library must be present.
            fn look_up() -> Self {
                // SAFETY: present, so this does not panic; the library is never unloaded.
                let library = unsafe { sys::culib() };
                Self {
                    // SAFETY: each name is looked up with the signature that the driver's manual gives it.
                    $($name: unsafe { library.get(concat!(stringify!($name), "\0").as_bytes()) }.ok().map(|symbol| *symbol),)*
                }
            }
        }
    };
}

function_table! {
    cuInit(c_uint);
    cuDriverGetVersion(*mut c_int);
    cuGetErrorName(c_int, *mut *const c_char);
    cuGetErrorString(c_int, *mut *const c_char);
    cuDeviceGetCount(*mut c_int);
    cuDeviceGet(*mut c_int, c_int);
    cuDeviceGetName(*mut c_char, c_int, c_int);
    cuDeviceGetUuid_v2(*mut [u8; 16], c_int);
    cuDeviceGetPCIBusId(*mut c_char, c_int, c_int);
    cuDeviceTotalMem_v2(*mut usize, c_int);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuCheckpointProcessGetState(c_int, *mut c_int);
    cuCheckpointProcessGetRestoreThreadId(c_int, *mut c_int);
    cuCheckpointProcessLock(c_int, *const Arguments);
    cuCheckpointProcessCheckpoint(c_int, *const Arguments);
    cuCheckpointProcessRestore(c_int, *const Arguments);
    cuCheckpointProcessUnlock(c_int, *const Arguments);
}

/// The loaded driver, after `cuInit`.
#[derive(Debug)]
pub struct Driver {
    functions: Functions,
    version: c_int,
}

/// A device as the driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// CUDA ordinal.
    pub ordinal: u32,
    /// The 16 bytes of its UUID (that of the MIG instance on a GPU so cut).
    pub uuid: [u8; 16],
    /// Product name.
    pub name: String,
    /// `domain:bus:device.function`, lower case.
    pub pci_bus_id: String,
    /// Bytes of memory.
    pub total: u64,
    /// Whether an MPS server runs it.
    pub mps: bool,
}

/// Calls a function of the table, or says that the driver does not have it.
macro_rules! call {
    ($driver:expr, $name:ident on $on:expr, ($($argument:expr),*)) => {
        match $driver.functions.$name {
            // SAFETY: the arguments are those of the manual; every pointer is to a live local of the right size.
            Some(function) => $driver.check(stringify!($name), $on, unsafe { function($($argument),*) }),
            None => Err($driver.absent(stringify!($name), $on)),
        }
    };
}

impl Driver {
    /// Loads the driver and calls `cuInit`, which on a machine without persistence mode takes seconds: once a
    /// process.
    ///
    /// # Errors
    /// The capability that is missing: the library, or a device.
    pub fn load() -> Result<Self, Capability> {
        // SAFETY: loading the system's driver library runs its initialisers, as in every CUDA program.
        if !unsafe { sys::is_culib_present() } {
            return Err(Capability::missing(
                "cuda",
                "libcuda.so.1 cannot be loaded",
                "run on a GPU node; in a container pass the driver through (apptainer --nv)",
            ));
        }
        let mut driver = Self { functions: Functions::look_up(), version: 0 };
        driver.initialise().map_err(|refusal| {
            let remedy = "ask for a GPU (--gpus=1) and check nvidia-smi and CUDA_VISIBLE_DEVICES";
            Capability::missing("cuda", refusal.to_string(), remedy)
        })?;
        Ok(driver)
    }

    fn initialise(&mut self) -> Result<(), Refusal> {
        call!(self, cuInit on "this process", (0))?;
        let mut version = 0;
        call!(self, cuDriverGetVersion on "the driver", (&raw mut version))?;
        self.version = version;
        Ok(())
    }

    /// CUDA version of the driver: 1000 × major + 10 × minor.
    pub fn version(&self) -> i32 {
        self.version
    }

    /// Whether the checkpoint API is there, and if not, which function is missing.
    pub fn checkpoint_capability(&self) -> Capability {
        let functions = &self.functions;
        let missing: Vec<_> = [
            ("cuCheckpointProcessGetState", functions.cuCheckpointProcessGetState.is_some()),
            (
                "cuCheckpointProcessGetRestoreThreadId",
                functions.cuCheckpointProcessGetRestoreThreadId.is_some(),
            ),
            ("cuCheckpointProcessLock", functions.cuCheckpointProcessLock.is_some()),
            ("cuCheckpointProcessCheckpoint", functions.cuCheckpointProcessCheckpoint.is_some()),
            ("cuCheckpointProcessRestore", functions.cuCheckpointProcessRestore.is_some()),
            ("cuCheckpointProcessUnlock", functions.cuCheckpointProcessUnlock.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, there)| (!there).then_some(name))
        .collect();
        let (major, minor) = (self.version / 1000, self.version % 1000 / 10);
        if missing.is_empty() && self.version >= CHECKPOINT_SINCE {
            return Capability::found("checkpoint", format!("driver for CUDA {major}.{minor}"));
        }
        let mut reason = format!(
            "the driver is for CUDA {major}.{minor}; process checkpoints came with 12.8 (driver 570)"
        );
        if !missing.is_empty() {
            reason += &format!("; missing: {}", missing.join(", "));
        }
        Capability::missing(
            "checkpoint",
            reason,
            "a node with driver 570 or newer; engines are restarted instead",
        )
    }

    /// The devices that `CUDA_VISIBLE_DEVICES` shows.
    ///
    /// # Errors
    /// The driver's refusal.
    pub fn devices(&self) -> Result<Vec<Device>, Refusal> {
        let mut count = 0;
        call!(self, cuDeviceGetCount on "the driver", (&raw mut count))?;
        (0..count).map(|ordinal| self.device(ordinal)).collect()
    }

    fn device(&self, ordinal: c_int) -> Result<Device, Refusal> {
        /// `CU_DEVICE_ATTRIBUTE_MPS_ENABLED`; unknown to old drivers.
        const MPS_ENABLED: c_int = 133;
        let on = format!("GPU {ordinal}");
        let mut handle = 0;
        call!(self, cuDeviceGet on &on, (&raw mut handle, ordinal))?;
        let (mut name, mut pci) = ([0 as c_char; 256], [0 as c_char; 32]);
        let (mut uuid, mut total, mut mps) = ([0u8; 16], 0usize, 0);
        call!(self, cuDeviceGetName on &on, (name.as_mut_ptr(), name.len() as c_int, handle))?;
        call!(self, cuDeviceGetPCIBusId on &on, (pci.as_mut_ptr(), pci.len() as c_int, handle))?;
        call!(self, cuDeviceGetUuid_v2 on &on, (&raw mut uuid, handle))?;
        call!(self, cuDeviceTotalMem_v2 on &on, (&raw mut total, handle))?;
        let known = call!(self, cuDeviceGetAttribute on &on, (&raw mut mps, MPS_ENABLED, handle)).is_ok();
        Ok(Device {
            ordinal: ordinal as u32,
            uuid,
            name: text(&name),
            pci_bus_id: text(&pci).to_lowercase(),
            total: total as u64,
            mps: known && mps != 0,
        })
    }

    /// The process's state.
    ///
    /// # Errors
    /// The driver's refusal; `CUDA_ERROR_INVALID_VALUE` for a process that does not use CUDA.
    pub fn state(&self, pid: i32) -> Result<ProcessState, Refusal> {
        let mut state = 0;
        call!(self, cuCheckpointProcessGetState on &process(pid), (pid, &raw mut state))?;
        Ok(match state {
            0 => ProcessState::Running,
            1 => ProcessState::Locked,
            2 => ProcessState::Checkpointed,
            3 => ProcessState::Failed,
            _ => ProcessState::Moving,
        })
    }

    /// The thread of the process in which a restore runs. It must not be stopped while one does.
    ///
    /// # Errors
    /// The driver's refusal, also for a process without CUDA state.
    pub fn restore_thread(&self, pid: i32) -> Result<i32, Refusal> {
        let mut thread = 0;
        call!(self, cuCheckpointProcessGetRestoreThreadId on &process(pid), (pid, &raw mut thread))?;
        Ok(thread)
    }

    /// Running → locked. Waits for the process's calls under way, at most `timeout`; then the process runs on.
    ///
    /// # Errors
    /// The driver's refusal; `CUDA_ERROR_NOT_READY` after `timeout`.
    pub fn lock(&self, pid: i32, timeout: Duration) -> Result<(), Refusal> {
        // 0 would mean no limit at all.
        let timeout_ms = u32::try_from(timeout.as_millis()).unwrap_or(u32::MAX).max(1);
        let arguments = Arguments { timeout_ms, ..Arguments::default() };
        call!(self, cuCheckpointProcessLock on &process(pid), (pid, &raw const arguments))
    }

    /// Locked → checkpointed.
    ///
    /// # Errors
    /// The driver's refusal; the process is then still locked.
    pub fn checkpoint(&self, pid: i32) -> Result<(), Refusal> {
        let arguments = Arguments::default();
        call!(self, cuCheckpointProcessCheckpoint on &process(pid), (pid, &raw const arguments))
    }

    /// Checkpointed → locked.
    ///
    /// # Errors
    /// The driver's refusal; the process is then lost.
    pub fn restore(&self, pid: i32) -> Result<(), Refusal> {
        let arguments = Arguments::default();
        call!(self, cuCheckpointProcessRestore on &process(pid), (pid, &raw const arguments))
    }

    /// Locked → running.
    ///
    /// # Errors
    /// The driver's refusal.
    pub fn unlock(&self, pid: i32) -> Result<(), Refusal> {
        let arguments = Arguments::default();
        call!(self, cuCheckpointProcessUnlock on &process(pid), (pid, &raw const arguments))
    }

    fn check(&self, function: &str, on: &str, code: c_int) -> Result<(), Refusal> {
        if code == 0 {
            return Ok(());
        }
        Err(Refusal {
            function: function.to_owned(),
            on: on.to_owned(),
            code,
            name: self.code_text(self.functions.cuGetErrorName, code).unwrap_or_else(|| "unnamed".to_owned()),
            text: self
                .code_text(self.functions.cuGetErrorString, code)
                .unwrap_or_else(|| "no text".to_owned()),
        })
    }

    fn code_text(
        &self,
        function: Option<unsafe extern "C" fn(c_int, *mut *const c_char) -> c_int>,
        code: c_int,
    ) -> Option<String> {
        let mut text = std::ptr::null();
        // SAFETY: the function writes a pointer to a static text, or leaves null for an unknown code.
        unsafe { function?(code, &raw mut text) };
        // SAFETY: not null, so a static C string of the driver.
        (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
    }

    fn absent(&self, function: &str, on: &str) -> Refusal {
        Refusal {
            function: function.to_owned(),
            on: on.to_owned(),
            code: 0,
            name: "absent".to_owned(),
            text: "this driver does not have the function".to_owned(),
        }
    }
}

fn process(pid: i32) -> String {
    format!("process {pid}")
}

/// The text in a buffer that the driver filled.
fn text(buffer: &[c_char]) -> String {
    buffer.iter().take_while(|&&byte| byte != 0).map(|&byte| char::from(byte as u8)).collect()
}

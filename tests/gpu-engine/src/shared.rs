//! Memory shared between the engine's processes, to see what a checkpoint makes of it.

use std::ffi::c_void;

use crate::cuda::{Access, AllocationProperties, Cuda, Location};
use crate::cuda_call;
use crate::options::Options;

/// Bytes shared each way.
const BYTES: usize = 64 << 20;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const POSIX_DESCRIPTOR: i32 = 1;
const DEVICE: Location = Location { kind: 1, id: 0 };

/// What workers are told of the shared memory.
#[derive(Debug, Default)]
pub struct Shared {
    /// Arguments that a worker gets.
    pub arguments: Vec<String>,
}

/// In the main process: exports what the options ask for.
pub fn offer(cuda: &Cuda, options: &Options) -> Result<Shared, String> {
    let mut shared = Shared::default();
    if options.imported {
        let properties = AllocationProperties {
            kind: 1,
            handle_types: POSIX_DESCRIPTOR,
            location: DEVICE,
            win32: std::ptr::null_mut(),
            flags: [0; 8],
        };
        let (mut handle, mut descriptor) = (0, 0);
        cuda_call!(cuda, cuMemCreate(&raw mut handle, BYTES, &raw const properties, 0))?;
        cuda_call!(cuda, cuMemExportToShareableHandle(&raw mut descriptor, handle, POSIX_DESCRIPTOR, 0))?;
        map(cuda, handle)?;
        // SAFETY: the descriptor is this process's own; the flag lets workers inherit it.
        unsafe { libc::fcntl(descriptor, libc::F_SETFD, 0) };
        shared.arguments.extend(["--import-fd".to_owned(), descriptor.to_string()]);
    }
    if options.ipc {
        let (mut address, mut handle) = (0, [0u8; 64]);
        cuda_call!(cuda, cuMemAlloc_v2(&raw mut address, BYTES))?;
        cuda_call!(cuda, cuIpcGetMemHandle(&raw mut handle, address))?;
        let hex: String = handle.iter().map(|byte| format!("{byte:02x}")).collect();
        shared.arguments.extend(["--import-handle".to_owned(), hex]);
    }
    Ok(shared)
}

/// In a worker: maps what the main process offers.
pub fn join(cuda: &Cuda, options: &Options) -> Result<Shared, String> {
    if let Some(descriptor) = options.import_fd {
        let mut handle = 0;
        cuda_call!(
            cuda,
            cuMemImportFromShareableHandle(
                &raw mut handle,
                descriptor as usize as *mut c_void,
                POSIX_DESCRIPTOR
            )
        )?;
        map(cuda, handle)?;
        // SAFETY: the worker's own copy of the descriptor, not used again.
        unsafe { libc::close(descriptor) };
    }
    if let Some(hex) = &options.import_handle {
        let mut handle = [0u8; 64];
        for (at, byte) in handle.iter_mut().enumerate() {
            let digits = hex.get(2 * at..2 * at + 2).ok_or("the IPC handle is too short")?;
            *byte = u8::from_str_radix(digits, 16).map_err(|error| error.to_string())?;
        }
        let mut address = 0;
        /// `CU_IPC_MEM_LAZY_ENABLE_PEER_ACCESS`.
        const LAZY_PEER_ACCESS: u32 = 1;
        cuda_call!(cuda, cuIpcOpenMemHandle_v2(&raw mut address, handle, LAZY_PEER_ACCESS))?;
    }
    Ok(Shared::default())
}

fn map(cuda: &Cuda, handle: u64) -> Result<(), String> {
    /// `CU_MEM_ACCESS_FLAGS_PROT_READWRITE`.
    const READ_WRITE: i32 = 3;
    let mut address = 0;
    cuda_call!(cuda, cuMemAddressReserve(&raw mut address, BYTES, 0, 0, 0))?;
    cuda_call!(cuda, cuMemMap(address, BYTES, 0, handle, 0))?;
    let access = Access { location: DEVICE, flags: READ_WRITE };
    cuda_call!(cuda, cuMemSetAccess(address, BYTES, &raw const access, 1))
}

/// Prints this process's NVIDIA descriptors and mappings, for a person to compare.
pub fn print_maps() {
    let me = std::process::id();
    for entry in std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
        if let Ok(target) = std::fs::read_link(entry.path())
            && target.to_string_lossy().contains("nvidia")
        {
            eprintln!("{me} fd {} {}", entry.file_name().to_string_lossy(), target.display());
        }
    }
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    for line in maps.lines().filter(|line| line.contains("/dev/nvidia")) {
        eprintln!("{me} map {line}");
    }
}

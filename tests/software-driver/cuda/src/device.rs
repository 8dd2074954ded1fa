//! `cuDevice*`: how many GPUs there are and what they are.

use std::ffi::{CStr, CString, c_char, c_int, c_uint};

use crate::api::{driver_api, put, put_text};
use crate::error::{Error, Outcome};
use crate::session;

/// Attributes with a value other than 0, by their number in `CUdevice_attribute`.
const ATTRIBUTES: &[(c_int, c_int)] = &[
    (1, 1024),     // MAX_THREADS_PER_BLOCK
    (2, 1024),     // MAX_BLOCK_DIM_X
    (3, 1024),     // MAX_BLOCK_DIM_Y
    (4, 64),       // MAX_BLOCK_DIM_Z
    (5, i32::MAX), // MAX_GRID_DIM_X
    (10, 32),      // WARP_SIZE
    (16, 132),     // MULTIPROCESSOR_COUNT
    (40, 4),       // ASYNC_ENGINE_COUNT
    (41, 1),       // UNIFIED_ADDRESSING
    (75, 9),       // COMPUTE_CAPABILITY_MAJOR
    (83, 1),       // MANAGED_MEMORY
    (89, 1),       // CONCURRENT_MANAGED_ACCESS
    (102, 1),      // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED
    (103, 1),      // HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
    (115, 1),      // MEMORY_POOLS_SUPPORTED
];

/// `CU_DEVICE_ATTRIBUTE_PCI_BUS_ID`.
const PCI_BUS: c_int = 33;

fn put_uuid(uuid: *mut [u8; 16], device: c_int) -> Outcome {
    put(uuid, software_gpu::uuid(session::gpu(device)?))
}

fn put_bytes(bytes: *mut usize, device: c_int) -> Outcome {
    let gpu = session::gpu(device)?;
    put(bytes, session::here()?.table.machine().gpus[gpu].bytes as usize)
}

driver_api! {
    open fn cuDeviceGetCount(count: *mut c_int) {
        put(count, session::here()?.visible.len() as c_int)
    }

    open fn cuDeviceGet(device: *mut c_int, ordinal: c_int) {
        session::gpu(ordinal)?;
        put(device, ordinal)
    }

    open fn cuDeviceGetName(name: *mut c_char, room: c_int, device: c_int) {
        session::gpu(device)?;
        put_text(name, room, c"Software GPU")
    }

    open fn cuDeviceGetUuid(uuid: *mut [u8; 16], device: c_int) {
        put_uuid(uuid, device)
    }

    open fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], device: c_int) {
        put_uuid(uuid, device)
    }

    open fn cuDeviceTotalMem_v2(bytes: *mut usize, device: c_int) {
        put_bytes(bytes, device)
    }

    open fn cuDeviceTotalMem(bytes: *mut usize, device: c_int) {
        put_bytes(bytes, device)
    }

    open fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, device: c_int) {
        let gpu = session::gpu(device)?;
        if session::here()?.table.machine().lacks.contains(&attribute) {
            return put(value, 0);
        }
        let known = ATTRIBUTES.iter().find(|entry| entry.0 == attribute).map_or(0, |entry| entry.1);
        put(value, if attribute == PCI_BUS { gpu as c_int + 1 } else { known })
    }

    open fn cuDeviceGetPCIBusId(text: *mut c_char, room: c_int, device: c_int) {
        let id = CString::new(software_gpu::pci_bus_id(session::gpu(device)?)).map_err(|_| Error::UNKNOWN)?;
        put_text(text, room, &id)
    }

    open fn cuDeviceGetByPCIBusId(device: *mut c_int, text: *const c_char) {
        if text.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the driver's contract has the caller pass a C string.
        let wanted = unsafe { CStr::from_ptr(text) }.to_string_lossy().to_lowercase();
        let visible = &session::here()?.visible;
        let at = visible.iter().position(|&gpu| software_gpu::pci_bus_id(gpu) == wanted);
        put(device, at.ok_or(Error::INVALID_DEVICE)? as c_int)
    }

    open fn cuDeviceCanAccessPeer(yes: *mut c_int, device: c_int, peer: c_int) {
        session::gpu(device)?;
        session::gpu(peer)?;
        put(yes, c_int::from(device != peer))
    }

    open fn cuDeviceComputeCapability(major: *mut c_int, minor: *mut c_int, device: c_int) {
        session::gpu(device)?;
        put(major, 9)?;
        put(minor, 0)
    }

    open fn cuDevicePrimaryCtxSetFlags_v2(device: c_int, _flags: c_uint) {
        session::gpu(device).map(|_| ())
    }
}

//! Which GPUs there are and what they are.

use std::ffi::{CStr, c_char, c_int, c_uint, c_ulong};

use crate::system::{Code, Device, INVALID_ARGUMENT, NOT_FOUND, NOT_SUPPORTED, code, put, put_text, table};

/// NVML index of a device.
pub(crate) fn index(device: Device) -> Result<usize, Code> {
    let (_, seen) = table()?;
    (device as usize).checked_sub(1).filter(|&index| index < seen.len()).ok_or(INVALID_ARGUMENT)
}

/// Place on the bus of a device.
pub(crate) fn gpu(device: Device) -> Result<usize, Code> {
    Ok(table()?.1[index(device)?])
}

fn find(out: *mut Device, wanted: impl Fn(usize) -> bool) -> Result<(), Code> {
    let at = table()?.1.iter().position(|&gpu| wanted(gpu)).ok_or(NOT_FOUND)?;
    put(out, (at + 1) as Device)
}

fn text<'a>(pointer: *const c_char) -> Result<&'a str, Code> {
    if pointer.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and NVML's contract has the caller pass a C string that lives for the call.
    unsafe { CStr::from_ptr(pointer) }.to_str().map_err(|_| INVALID_ARGUMENT)
}

/// How many GPUs are seen.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCount_v2(count: *mut c_uint) -> Code {
    code(table().and_then(|(_, seen)| put(count, seen.len() as c_uint)))
}

/// The device with that index.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByIndex_v2(index: c_uint, out: *mut Device) -> Code {
    code(table().and_then(|(_, seen)| {
        if (index as usize) < seen.len() {
            put(out, (index as usize + 1) as Device)
        } else {
            Err(INVALID_ARGUMENT)
        }
    }))
}

/// The device with that UUID.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByUUID(uuid: *const c_char, out: *mut Device) -> Code {
    code(
        text(uuid)
            .and_then(|wanted| find(out, |gpu| software_gpu::uuid_text(software_gpu::uuid(gpu)) == wanted)),
    )
}

/// The device at that place on the bus.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetHandleByPciBusId_v2(id: *const c_char, out: *mut Device) -> Code {
    code(
        text(id).and_then(|wanted| {
            find(out, |gpu| wanted.to_lowercase().ends_with(&software_gpu::pci_bus_id(gpu)))
        }),
    )
}

/// Its index.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetIndex(device: Device, out: *mut c_uint) -> Code {
    code(index(device).and_then(|index| put(out, index as c_uint)))
}

/// The number in the name of its device node.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMinorNumber(device: Device, out: *mut c_uint) -> Code {
    code(gpu(device).and_then(|gpu| put(out, gpu as c_uint)))
}

/// Its UUID as text.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetUUID(device: Device, buffer: *mut c_char, room: c_uint) -> Code {
    code(
        gpu(device).and_then(|gpu| put_text(buffer, room, &software_gpu::uuid_text(software_gpu::uuid(gpu)))),
    )
}

/// Its name.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetName(device: Device, buffer: *mut c_char, room: c_uint) -> Code {
    code(gpu(device).and_then(|_| put_text(buffer, room, "Software GPU")))
}

/// `nvmlPciInfo_t`.
#[derive(Debug)]
#[repr(C)]
pub struct PciInfo {
    bus_id_legacy: [u8; 16],
    domain: c_uint,
    bus: c_uint,
    device: c_uint,
    pci_device_id: c_uint,
    pci_subsystem_id: c_uint,
    bus_id: [u8; 32],
}

/// Its place on the bus.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetPciInfo_v3(device: Device, out: *mut PciInfo) -> Code {
    code(gpu(device).and_then(|gpu| {
        let id = software_gpu::pci_bus_id(gpu);
        let mut info = PciInfo {
            bus_id_legacy: [0; 16],
            domain: 0,
            bus: gpu as c_uint + 1,
            device: 0,
            pci_device_id: 0x2335_10de,
            pci_subsystem_id: 0,
            bus_id: [0; 32],
        };
        info.bus_id_legacy[..id.len()].copy_from_slice(id.as_bytes());
        // The long form has a domain of eight digits.
        info.bus_id[..4].copy_from_slice(b"0000");
        info.bus_id[4..4 + id.len()].copy_from_slice(id.as_bytes());
        put(out, info)
    }))
}

/// Whether it is cut into MIG instances, now and after the next reset.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMigMode(device: Device, current: *mut c_uint, pending: *mut c_uint) -> Code {
    code(gpu(device).and_then(|_| {
        let mig = c_uint::from(table()?.0.machine().mig);
        put(current, mig)?;
        put(pending, mig)
    }))
}

/// Its compute capability, 9.0.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetCudaComputeCapability(
    device: Device,
    major: *mut c_int,
    minor: *mut c_int,
) -> Code {
    code(gpu(device).and_then(|_| {
        put(major, 9)?;
        put(minor, 0)
    }))
}

/// The NUMA node of a GPU whose memory is one: these have none.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetNumaNodeId(_device: Device, _out: *mut c_uint) -> Code {
    NOT_SUPPORTED
}

/// The NUMA nodes near it: node 0.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryAffinity(
    device: Device,
    words: c_uint,
    out: *mut c_ulong,
    _scope: c_uint,
) -> Code {
    code(gpu(device).and_then(|_| if words == 0 { Err(INVALID_ARGUMENT) } else { put(out, 1) }))
}

//! Memory in use: per GPU and per process, with the driver's own lag behind the truth.

use std::ffi::c_uint;

use crate::device::gpu;
use crate::system::{Code, Device, INSUFFICIENT_SIZE, INVALID_ARGUMENT, code, put, table};

/// `nvmlMemory_t`.
#[derive(Debug)]
#[repr(C)]
pub struct Memory {
    total: u64,
    free: u64,
    used: u64,
}

/// `nvmlMemory_v2_t`.
#[derive(Debug)]
#[repr(C)]
pub struct MemoryV2 {
    version: c_uint,
    total: u64,
    reserved: u64,
    free: u64,
    used: u64,
}

/// `nvmlProcessInfo_v1_t`.
#[derive(Debug)]
#[repr(C)]
pub struct ProcessV1 {
    pid: c_uint,
    bytes: u64,
}

/// `nvmlProcessInfo_v2_t`, and the form that version 3 of the call fills in.
#[derive(Debug)]
#[repr(C)]
pub struct Process {
    pid: c_uint,
    bytes: u64,
    gpu_instance: c_uint,
    compute_instance: c_uint,
}

fn total_and_used(device: Device) -> Result<(u64, u64), Code> {
    let gpu = gpu(device)?;
    let (table, _) = table()?;
    let total = table.machine().gpus[gpu].bytes;
    let used: u64 = table.processes().map(|record| record.seen_by_nvml(gpu)).sum();
    Ok((total, used.min(total)))
}

fn list<T>(
    device: Device,
    count: *mut c_uint,
    out: *mut T,
    entry: impl Fn(c_uint, u64) -> T,
) -> Result<(), Code> {
    let gpu = gpu(device)?;
    let (table, _) = table()?;
    if count.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and NVML's contract has the caller say here how many entries there is room for.
    let room = unsafe { count.read() } as usize;
    let found: Vec<_> = table
        .processes()
        .filter_map(|record| Some((record.pid()? as c_uint, record.seen_by_nvml(gpu))))
        .filter(|&(_, bytes)| bytes > 0)
        .collect();
    put(count, found.len() as c_uint)?;
    if found.len() > room || (out.is_null() && !found.is_empty()) {
        return Err(INSUFFICIENT_SIZE);
    }
    for (at, &(pid, bytes)) in found.iter().enumerate() {
        // SAFETY: the caller's array has `room` entries, at least as many as were found.
        unsafe { out.add(at).write(entry(pid, bytes)) };
    }
    Ok(())
}

/// Bytes of a GPU, in all and in use.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo(device: Device, out: *mut Memory) -> Code {
    code(
        total_and_used(device).and_then(|(total, used)| put(out, Memory { total, free: total - used, used })),
    )
}

/// The same, the driver's own share apart (there is none).
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetMemoryInfo_v2(device: Device, out: *mut MemoryV2) -> Code {
    code(total_and_used(device).and_then(|(total, used)| {
        let version = (size_of::<MemoryV2>() as c_uint) | (2 << 24);
        put(out, MemoryV2 { version, total, reserved: 0, free: total - used, used })
    }))
}

/// Processes with memory on a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses(
    device: Device,
    count: *mut c_uint,
    out: *mut ProcessV1,
) -> Code {
    code(list(device, count, out, |pid, bytes| ProcessV1 { pid, bytes }))
}

fn whole(pid: c_uint, bytes: u64) -> Process {
    Process { pid, bytes, gpu_instance: c_uint::MAX, compute_instance: c_uint::MAX }
}

/// Processes with memory on a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v2(
    device: Device,
    count: *mut c_uint,
    out: *mut Process,
) -> Code {
    code(list(device, count, out, whole))
}

/// Processes with memory on a GPU.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetComputeRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    out: *mut Process,
) -> Code {
    code(list(device, count, out, whole))
}

/// Processes that draw on a GPU: none.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlDeviceGetGraphicsRunningProcesses_v3(
    device: Device,
    count: *mut c_uint,
    _out: *mut Process,
) -> Code {
    code(gpu(device).and_then(|_| put(count, 0)))
}

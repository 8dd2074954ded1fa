//! Steps about pools of stream-ordered allocations.

use std::ffi::{c_int, c_void};

use serde_json::{Value, json};

use crate::cuda::{Access, Cuda, Location, PoolProperties};
use crate::cuda_call;
use crate::versions::found;

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const POSIX_DESCRIPTOR: i32 = 1;
const NULL: *mut c_void = std::ptr::null_mut();

/// Does a step; its result. A `location` has it done as programs of CUDA 13 do.
pub fn step(cuda: &Cuda, step: &Value) -> Result<Value, String> {
    let number = |key: &str| step[key].as_u64().unwrap_or(0);
    let (gpu, pool, bytes) = (number("gpu") as c_int, number("pool") as *mut c_void, number("bytes"));
    let mut out = NULL;
    match step["do"].as_str().unwrap_or_default() {
        "pool" => {
            let properties = PoolProperties {
                kind: 1,
                handle_types: if step["exportable"] == true { POSIX_DESCRIPTOR } else { 0 },
                location: Location { kind: 1, id: gpu },
                win32: NULL,
                largest: bytes as usize,
                reserved: [0; 56],
            };
            cuda_call!(cuda, cuMemPoolCreate(&raw mut out, &raw const properties))?;
        }
        "default-pool" => cuda_call!(cuda, cuDeviceGetDefaultMemPool(&raw mut out, gpu))?,
        "current-pool" if step["location"] == true => current(cuda, gpu, &mut out)?,
        "current-pool" => cuda_call!(cuda, cuDeviceGetMemPool(&raw mut out, gpu))?,
        "set-pool" if step["location"] == true => set(cuda, gpu, pool)?,
        "set-pool" => cuda_call!(cuda, cuDeviceSetMemPool(gpu, pool))?,
        "destroy-pool" => cuda_call!(cuda, cuMemPoolDestroy(pool))?,
        "threshold" => {
            /// `CU_MEMPOOL_ATTR_RELEASE_THRESHOLD`.
            const RELEASE_THRESHOLD: i32 = 4;
            let mut bytes = bytes;
            let value = (&raw mut bytes).cast();
            cuda_call!(cuda, cuMemPoolSetAttribute(pool, RELEASE_THRESHOLD, value))?;
        }
        "pool-access" => {
            let access = Access { location: Location { kind: 1, id: gpu }, flags: 3 };
            cuda_call!(cuda, cuMemPoolSetAccess(pool, &raw const access, 1))?;
        }
        "trim" => cuda_call!(cuda, cuMemPoolTrimTo(pool, bytes as usize))?,
        other => return Err(format!("no step {other:?}")),
    }
    Ok(if out.is_null() { Value::Null } else { json!({"pool": out as u64}) })
}

/// `CU_MEM_ALLOCATION_TYPE_PINNED`.
const PINNED: c_int = 1;
/// The version of CUDA that has pools of locations.
const WITH_LOCATIONS: c_int = 13000;

fn current(cuda: &Cuda, gpu: c_int, out: &mut *mut c_void) -> Result<(), String> {
    type Get = unsafe extern "C" fn(*mut *mut c_void, *const Location, c_int) -> c_int;
    let (name, location) = ("cuMemGetMemPool", Location { kind: 1, id: gpu });
    let get = found(name, WITH_LOCATIONS)?;
    // SAFETY: the function of that name has this signature; pointers are to live values.
    let code = unsafe { std::mem::transmute::<*const c_void, Get>(get)(out, &raw const location, PINNED) };
    cuda.check(name, code)
}

fn set(cuda: &Cuda, gpu: c_int, pool: *mut c_void) -> Result<(), String> {
    type Set = unsafe extern "C" fn(*const Location, c_int, *mut c_void) -> c_int;
    let (name, location) = ("cuMemSetMemPool", Location { kind: 1, id: gpu });
    let set = found(name, WITH_LOCATIONS)?;
    // SAFETY: as above.
    let code = unsafe { std::mem::transmute::<*const c_void, Set>(set)(&raw const location, PINNED, pool) };
    cuda.check(name, code)
}

//! Modules and kernels. No code is run: a kernel is known by its name, and done in Rust.
//!
//! | kernel | does |
//! | --- | --- |
//! | `swapserve_digest` | digests of 2 MiB blocks |
//! | `add_one` | `(words: *u32, count: u64)`: adds one to each word; for test engines |
//! | `add_when_told` | `(words: *u32, count: u64, told: *u64)`: the same once the host has written something other than 0 |

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::{driver_api, put};
use crate::context::{current, current_gpu};
use crate::error::{Error, Outcome};

#[path = "../../../../src/gpu/digest/reference.rs"]
mod reference;

/// Kernels by name, with how many parameters they have; the handle of entry `n` is `n + 1`.
const KERNELS: &[(&CStr, usize, Kernel)] =
    &[(c"swapserve_digest", 4, digest), (c"add_one", 2, add_one), (c"add_when_told", 3, add_when_told)];

/// Handle of the one module there is.
const MODULE: usize = 0x700;

/// Does a kernel's work for a grid of that many thread blocks; every parameter here has 64 bits.
type Kernel = fn(launch: &Launch) -> Outcome;

/// A kernel with what it is to work on.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    kernel: Kernel,
    grid: usize,
    stream: usize,
    parameters: Vec<u64>,
}

fn digest(launch: &Launch) -> Outcome {
    let &[base, out, low, high] = &launch.parameters[..] else { return Err(Error::INVALID_VALUE) };
    let key = [low, high];
    for block in 0..launch.grid {
        let address = base + (block * reference::BLOCK) as u64;
        // SAFETY: device addresses are addresses of this process, mapped or the program is at fault.
        let bytes = unsafe { std::slice::from_raw_parts(address as *const u8, reference::BLOCK) };
        let digest = reference::digest(bytes, key);
        // SAFETY: the program's buffer holds a digest for every block.
        unsafe { (out as *mut reference::Digest).add(block).write_unaligned(digest) };
    }
    Ok(())
}

fn add_one(launch: &Launch) -> Outcome {
    let &[base, count] = &launch.parameters[..] else { return Err(Error::INVALID_VALUE) };
    add(base, count);
    Ok(())
}

fn add_when_told(launch: &Launch) -> Outcome {
    let &[base, count, told] = &launch.parameters[..] else { return Err(Error::INVALID_VALUE) };
    crate::work::begin(current()?, launch.stream, move || {
        // SAFETY: a word of the program's own that outlives the kernel.
        let told = unsafe { &*(told as *const AtomicU64) };
        while told.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        add(base, count);
    });
    Ok(())
}

fn add(base: u64, count: u64) {
    // SAFETY: the program owns that many words of its device memory.
    let words = unsafe { std::slice::from_raw_parts_mut(base as *mut u32, count as usize) };
    words.iter_mut().for_each(|word| *word = word.wrapping_add(1));
}

/// Does a launch's work.
pub(crate) fn launch_now(launch: &Launch) -> Outcome {
    (launch.kernel)(launch)
}

fn launch(
    function: *mut c_void,
    grid: usize,
    stream: *mut c_void,
    parameters: *const *const c_void,
) -> Outcome {
    current_gpu()?;
    let kernel = (function as usize).checked_sub(1).and_then(|at| KERNELS.get(at));
    let &(_, count, kernel) = kernel.ok_or(Error::INVALID_HANDLE)?;
    if parameters.is_null() || grid == 0 {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: the launch's contract: as many pointers as the kernel has parameters, each to its value.
    let word = |at| unsafe { (*parameters.add(at)).cast::<u64>().read_unaligned() };
    let parameters = (0..count).map(word).collect();
    let launch = Launch { kernel, grid, stream: stream as usize, parameters };
    crate::graph::captured(stream, &launch).unwrap_or_else(|| launch_now(&launch))
}

driver_api! {
    gated fn cuModuleLoadData(out: *mut *mut c_void, image: *const c_void) {
        current_gpu()?;
        if image.is_null() {
            return Err(Error::INVALID_IMAGE);
        }
        put(out, MODULE as *mut c_void)
    }

    gated fn cuModuleUnload(_module: *mut c_void) { Ok(()) }

    gated fn cuModuleGetFunction(out: *mut *mut c_void, _module: *mut c_void, name: *const c_char) {
        if name.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the driver's contract has the caller pass a C string.
        let name = unsafe { CStr::from_ptr(name) };
        let at = KERNELS.iter().position(|kernel| kernel.0 == name).ok_or(Error::NOT_FOUND)?;
        put(out, (at + 1) as *mut c_void)
    }

    gated fn cuLaunchKernel(
        function: *mut c_void,
        grid_x: c_uint,
        _grid_y: c_uint,
        _grid_z: c_uint,
        _block_x: c_uint,
        _block_y: c_uint,
        _block_z: c_uint,
        _shared: c_uint,
        stream: *mut c_void,
        parameters: *const *const c_void,
        _extra: *const *const c_void,
    ) {
        launch(function, grid_x as usize, stream, parameters)
    }
}

//! Start and end, versions, and what every other function needs: the table and results.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

use software_gpu::table::Table;

/// `nvmlReturn_t`.
pub(crate) type Code = c_int;
/// A call's result, an `nvmlReturn_t` other than 0 if it failed.
pub(crate) type Outcome = Result<(), Code>;

pub(crate) const UNINITIALIZED: Code = 1;
pub(crate) const INVALID_ARGUMENT: Code = 2;
pub(crate) const NOT_SUPPORTED: Code = 3;
pub(crate) const NOT_FOUND: Code = 6;
pub(crate) const INSUFFICIENT_SIZE: Code = 7;
pub(crate) const DRIVER_NOT_LOADED: Code = 9;

static TABLE: OnceLock<Option<(Table, Vec<usize>)>> = OnceLock::new();

/// The table, and the place on the bus of each NVML index.
pub(crate) fn table() -> Result<(&'static Table, &'static [usize]), Code> {
    let opened = TABLE.get().ok_or(UNINITIALIZED)?.as_ref().ok_or(DRIVER_NOT_LOADED)?;
    Ok((&opened.0, &opened.1))
}

fn start() -> Outcome {
    TABLE.get_or_init(|| {
        let table = Table::from_environment().ok()?;
        let seen = table.machine().reachable();
        Some((table, seen))
    });
    table().map(|_| ())
}

/// An outcome as the number that NVML returns.
pub(crate) fn code(outcome: Outcome) -> Code {
    outcome.err().unwrap_or(0)
}

/// Writes a result through a pointer that the caller gave.
pub(crate) fn put<T>(pointer: *mut T, value: T) -> Outcome {
    if pointer.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    // SAFETY: not null, and NVML's contract has the caller pass room for one T.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Copies a text and a final zero into a buffer that the caller gave.
pub(crate) fn put_text(buffer: *mut c_char, room: c_uint, text: &str) -> Outcome {
    if buffer.is_null() {
        return Err(INVALID_ARGUMENT);
    }
    if text.len() >= room as usize {
        return Err(INSUFFICIENT_SIZE);
    }
    // SAFETY: the caller's buffer has `room` bytes, more than the text.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr().cast(), buffer, text.len());
        buffer.add(text.len()).write(0);
    }
    Ok(())
}

/// Starts the library.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInit_v2() -> Code {
    code(start())
}

/// Starts the library; no flag changes anything here.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlInitWithFlags(_flags: c_uint) -> Code {
    code(start())
}

/// Ends the library; the table stays mapped.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlShutdown() -> Code {
    0
}

/// The text of a result.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlErrorString(result: Code) -> *const c_char {
    let text: &CStr = match result {
        0 => c"The operation was successful",
        UNINITIALIZED => c"NVML was not first initialized",
        INVALID_ARGUMENT => c"A supplied argument is invalid",
        NOT_SUPPORTED => c"The requested operation is not available on target device",
        NOT_FOUND => c"A query to find an object was unsuccessful",
        INSUFFICIENT_SIZE => c"An input argument is not large enough",
        DRIVER_NOT_LOADED => c"NVIDIA driver is not loaded",
        _ => c"An internal driver error occurred",
    };
    text.as_ptr()
}

/// `580.159.04` for the CUDA version 13000, and so on.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetDriverVersion(buffer: *mut c_char, room: c_uint) -> Code {
    code(table().and_then(|(table, _)| {
        let version = match table.machine().driver {
            13000.. => "580.159.04",
            12080.. => "570.86.15",
            _ => "550.54.14",
        };
        put_text(buffer, room, version)
    }))
}

/// The library's own version.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetNVMLVersion(buffer: *mut c_char, room: c_uint) -> Code {
    code(put_text(buffer, room, "13.580.159.04"))
}

/// The CUDA version, 1000 × major + 10 × minor.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion_v2(version: *mut c_int) -> Code {
    code(table().and_then(|(table, _)| put(version, table.machine().driver)))
}

/// The CUDA version, 1000 × major + 10 × minor.
#[unsafe(no_mangle)]
pub extern "C" fn nvmlSystemGetCudaDriverVersion(version: *mut c_int) -> Code {
    nvmlSystemGetCudaDriverVersion_v2(version)
}

/// A device: index + 1, never dereferenced.
pub(crate) type Device = *mut c_void;

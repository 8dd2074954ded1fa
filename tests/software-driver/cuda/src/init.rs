//! `cuInit`, versions, and names of errors.

use std::ffi::{c_char, c_int, c_uint};

use crate::api::{driver_api, put};
use crate::error::{Error, texts};
use crate::session;

driver_api! {
    early fn cuInit(flags: c_uint) {
        if flags != 0 {
            return Err(Error::INVALID_VALUE);
        }
        session::start()
    }

    early fn cuDriverGetVersion(version: *mut c_int) {
        let directory = std::env::var_os(software_gpu::DIRECTORY_VARIABLE).unwrap_or_default();
        put(version, software_gpu::config::Machine::read(directory.as_ref()).driver)
    }

    early fn cuGetErrorName(error: c_int, name: *mut *const c_char) {
        put(name, texts(error).ok_or(Error::INVALID_VALUE)?.0.as_ptr())
    }

    early fn cuGetErrorString(error: c_int, text: *mut *const c_char) {
        put(text, texts(error).ok_or(Error::INVALID_VALUE)?.1.as_ptr())
    }
}

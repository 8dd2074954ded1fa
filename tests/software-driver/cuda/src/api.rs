//! How an exported function is declared, and what every call passes before its body runs.
//!
//! Three gates:
//!
//! - `early`: faults only; for calls that may precede `cuInit`
//! - `open`: faults, and the process must have called `cuInit`
//! - `gated`: as `open`, and the call waits while the process is locked or checkpointed, as the driver has it

use std::ffi::{CStr, c_int, c_void};
use std::sync::atomic::Ordering;
use std::time::Duration;

use software_gpu::faults::{self, Action};
use software_gpu::record::{Record, State};
use software_gpu::{futex, table::Table};

use crate::error::{Error, Outcome};
use crate::session;

/// An exported function, for `cuGetProcAddress`.
#[derive(Debug)]
pub(crate) struct Symbol {
    pub(crate) name: &'static str,
    pub(crate) address: *const c_void,
}

// SAFETY: the address is that of a function; it is never written through.
unsafe impl Sync for Symbol {}

/// Declares exported driver functions and the module's `SYMBOLS`. Each body is an [`Outcome`]; it may dereference
/// its pointer arguments, whose validity is the caller's part of the driver's contract.
macro_rules! driver_api {
    ($($(#[$meta:meta])* $gate:ident $(($target:expr))? fn $name:ident($($argument:ident: $kind:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            pub unsafe extern "C" fn $name($($argument: $kind),*) -> std::ffi::c_int {
                #[allow(unused_mut, unused_assignments)]
                let mut target: Option<std::ffi::c_int> = None;
                $(target = Some($target);)?
                $crate::api::$gate(stringify!($name), target, || -> $crate::error::Outcome { $body })
            }
        )*

        /// The functions of this module.
        pub(crate) static SYMBOLS: &[$crate::api::Symbol] = &[$($crate::api::Symbol {
            name: stringify!($name),
            address: $name as *const std::ffi::c_void,
        }),*];
    };
}
pub(crate) use driver_api;

/// Writes a result through a pointer that the caller gave.
pub(crate) fn put<T>(pointer: *mut T, value: T) -> Outcome {
    if pointer.is_null() {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: not null, and the driver's contract has the caller pass room for one T.
    unsafe { pointer.write(value) };
    Ok(())
}

/// Copies a text with its final zero into a buffer that the caller gave, cut to its size.
pub(crate) fn put_text(buffer: *mut std::ffi::c_char, room: c_int, text: &CStr) -> Outcome {
    if buffer.is_null() || room < 1 {
        return Err(Error::INVALID_VALUE);
    }
    let length = text.count_bytes().min(room as usize - 1);
    // SAFETY: the caller's buffer has `room` bytes and the text at least `length`.
    unsafe {
        std::ptr::copy_nonoverlapping(text.as_ptr(), buffer, length);
        buffer.add(length).write(0);
    }
    Ok(())
}

pub(crate) fn early(name: &str, target: Option<c_int>, body: impl FnOnce() -> Outcome) -> c_int {
    code(strike(name, target).and_then(|()| body()))
}

pub(crate) fn open(name: &str, target: Option<c_int>, body: impl FnOnce() -> Outcome) -> c_int {
    code(strike(name, target).and_then(|()| session::here()).and_then(|_| body()))
}

pub(crate) fn gated(name: &str, target: Option<c_int>, body: impl FnOnce() -> Outcome) -> c_int {
    let run = || {
        let session = session::here()?;
        let _inside = Inside::enter(session.record)?;
        strike(name, target)?;
        body()
    };
    code(run())
}

fn code(outcome: Outcome) -> c_int {
    outcome.err().map_or(0, |error| error.0)
}

/// A call that is inside the driver: a lock waits for it to come out.
struct Inside<'a>(&'a Record);

impl<'a> Inside<'a> {
    fn enter(record: &'a Record) -> Result<Self, Error> {
        loop {
            record.in_flight.fetch_add(1, Ordering::SeqCst);
            let inside = Self(record);
            match record.state() {
                State::Running => return Ok(inside),
                State::Failed => return Err(Error::ILLEGAL_STATE),
                state => {
                    drop(inside);
                    futex::wait(&record.state, state as u32, Duration::from_secs(1));
                }
            }
        }
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
        futex::wake(&self.0.in_flight);
    }
}

fn strike(name: &str, target: Option<c_int>) -> Outcome {
    let Ok(directory) = std::env::var(software_gpu::DIRECTORY_VARIABLE) else { return Ok(()) };
    let strikes = || faults::strike(directory.as_ref(), name, std::process::id() as i32, target);
    match strikes() {
        None => Ok(()),
        Some(Action::Error(code)) => Err(Error(code)),
        Some(Action::Delay(time)) => {
            std::thread::sleep(time);
            Ok(())
        }
        Some(Action::Hold) => {
            while strikes() == Some(Action::Hold) {
                std::thread::sleep(Duration::from_millis(2));
            }
            Ok(())
        }
        Some(Action::Hang) => loop {
            std::thread::park();
        },
        Some(Action::Crash) => {
            kill(std::process::id() as i32);
            loop {
                std::thread::park();
            }
        }
        Some(Action::KillTarget) => {
            target.into_iter().for_each(kill);
            Ok(())
        }
    }
}

fn kill(pid: i32) {
    // SAFETY: kill has no memory effects; only processes of the test's own shared folder are named.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// The table and record of this process, for bodies that keep account of bytes.
pub(crate) fn account() -> Result<(&'static Table, &'static Record), Error> {
    let session = session::here()?;
    Ok((&session.table, session.record))
}

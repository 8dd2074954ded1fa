//! Where the daemon's side listens, as a variable of the environment says it: a path, or an abstract name behind `@`.

use std::ffi::{CStr, c_int};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// A socket's address and its length.
pub(crate) type Address = (libc::sockaddr_un, libc::socklen_t);

/// The address that a variable names; nothing where it is not set, or names none.
pub(crate) fn named_by(variable: &CStr) -> Option<Address> {
    // SAFETY: a constant C string; the value is copied before anything can change it.
    let text = unsafe { libc::getenv(variable.as_ptr()) };
    if text.is_null() {
        return None;
    }
    // SAFETY: not null, so a C string.
    of(unsafe { CStr::from_ptr(text) }.to_bytes())
}

/// The address of a name.
pub(crate) fn of(text: &[u8]) -> Option<Address> {
    // SAFETY: all zeros is a valid address.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    if text.is_empty() || text.len() >= address.sun_path.len() {
        return None;
    }
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in address.sun_path.iter_mut().zip(text) {
        *to = from.cast_signed();
    }
    let abstract_name = text[0] == b'@';
    if abstract_name {
        address.sun_path[0] = 0;
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + text.len() + usize::from(!abstract_name);
    Some((address, length as libc::socklen_t))
}

/// A connection to it (`kind`: `SOCK_STREAM` or `SOCK_SEQPACKET`), closed when a program is executed.
pub(crate) fn connect(address: &Address, kind: c_int) -> Option<OwnedFd> {
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, kind | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return None;
    }
    // SAFETY: just opened, as seen.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    loop {
        // SAFETY: the address lives through the call and is as long as it says.
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address.0).cast(), address.1) } == 0 {
            return Some(socket);
        }
        // Interrupted while it waited for a place in the listener's queue, a local connection has not begun (unix(7)).
        if std::io::Error::last_os_error().kind() != std::io::ErrorKind::Interrupted {
            return None;
        }
    }
}

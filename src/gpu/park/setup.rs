//! The daemon's side: the pool's memory and the engines' meeting place, made once and handed to every gpu server.
//!
//! Both outlive a gpu server that dies: what is parked stays where it is, and engines find the next server at the
//! same address.

use std::ffi::{CStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::sync::Arc;

use super::nodes::{Division, GpuNodes};
use super::server::Handover;
use crate::process::Launch;
use crate::topology::PciId;

/// Variable that tells the preload library where the memory server listens.
pub const SOCKET_VARIABLE: &str = "SWAPSERVE_PARK_SOCKET";
/// Variable with the bytes that `cuMemGetInfo` says an engine may hold on a GPU.
pub const BUDGET_VARIABLE: &str = "SWAPSERVE_GPU_BUDGET";

/// Bytes that the pool is a whole number of.
pub const SEGMENT: u64 = super::pool::SEGMENT;

/// Variable that tells the gpu server the number of the pool's descriptor.
const POOL_VARIABLE: &str = "SWAPSERVE_PARK_POOL";
/// Variable that tells it that of the book of what the pool holds.
const BOOK_VARIABLE: &str = "SWAPSERVE_PARK_BOOK";
/// Variable that tells it that of the listening socket.
const DOOR_VARIABLE: &str = "SWAPSERVE_PARK_DOOR";
/// Variable that tells it the NUMA node of each GPU of this machine.
const NODES_VARIABLE: &str = "SWAPSERVE_PARK_NODES";

/// The pool's memory and the listening socket.
#[derive(Debug, Clone)]
pub struct ParkSetup {
    pool: Arc<OwnedFd>,
    book: Arc<OwnedFd>,
    listener: Arc<OwnedFd>,
    name: String,
    nodes: GpuNodes,
}

impl ParkSetup {
    /// A pool of that many bytes, divided among the NUMA nodes of the GPUs. Nothing is taken yet: the gpu server pins it.
    ///
    /// # Errors
    /// If the kernel gives no memory file or socket.
    pub fn new(bytes: u64, nodes: GpuNodes) -> io::Result<Self> {
        let (pool, book) = (memory_file(c"swapserve-pool")?, memory_file(c"swapserve-book")?);
        let mut random = [0u8; 16];
        getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
        let name = format!("swapserve-park-{:032x}", u128::from_le_bytes(random));
        let listener = listen(&name)?;
        let setup =
            Self { pool: Arc::new(pool), book: Arc::new(book), listener: Arc::new(listener), name, nodes };
        setup.resize(bytes)?;
        Ok(setup)
    }

    /// Gives the pool its size, in whole segments of 256 MiB. To be called before anything asks the gpu server for it;
    /// a pool of no bytes is none.
    ///
    /// # Errors
    /// The kernel's refusal.
    pub fn resize(&self, bytes: u64) -> io::Result<()> {
        let bytes = bytes.next_multiple_of(SEGMENT);
        // SAFETY: the descriptor is open.
        if unsafe { libc::ftruncate(self.pool.as_raw_fd(), bytes.cast_signed()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    /// How a pool of that many bytes is divided where the job has these GPUs.
    pub fn division(&self, bytes: u64, gpus: &[Option<PciId>]) -> Division {
        division(bytes, &self.nodes, gpus)
    }

    /// Bytes of the pool.
    pub fn bytes(&self) -> u64 {
        stat(self.pool.as_raw_fd()).map_or(0, |found| found.st_size.cast_unsigned())
    }

    /// Bytes of it that the kernel has given so far and not got back.
    pub fn taken(&self) -> u64 {
        // st_blocks counts 512 bytes whatever the file system (stat(3type)).
        stat(self.pool.as_raw_fd()).map_or(0, |found| found.st_blocks.cast_unsigned() * 512)
    }

    /// What an engine needs in its environment.
    pub fn engine_environment(&self) -> (OsString, OsString) {
        (SOCKET_VARIABLE.into(), format!("@{}", self.name).into())
    }

    /// Hands it to a gpu server that is about to be launched.
    ///
    /// # Errors
    /// If this process has no descriptors left.
    pub fn hand_over(&self, launch: &mut Launch) -> io::Result<Vec<(OsString, OsString)>> {
        let mut environment = Vec::new();
        for (variable, descriptor) in
            [(POOL_VARIABLE, &self.pool), (BOOK_VARIABLE, &self.book), (DOOR_VARIABLE, &self.listener)]
        {
            let number = launch.inherit_fd(descriptor.try_clone()?);
            environment.push((variable.into(), number.to_string().into()));
        }
        environment.push((NODES_VARIABLE.into(), self.nodes.to_string().into()));
        Ok(environment)
    }
}

/// In the gpu server, which has these GPUs: what was handed over, if anything was.
pub(crate) fn handed_over(gpus: &[Option<PciId>]) -> Option<Handover> {
    let pool = inherited(POOL_VARIABLE)?;
    let book = inherited(BOOK_VARIABLE)?;
    let listener = inherited(DOOR_VARIABLE)?;
    let bytes = File::from(pool.try_clone().ok()?).metadata().ok()?.len();
    let nodes = std::env::var(NODES_VARIABLE).unwrap_or_default();
    let division = division(bytes, &GpuNodes::read(&nodes), gpus);
    Some(Handover { pool, book, listener, bytes, division })
}

fn division(bytes: u64, nodes: &GpuNodes, gpus: &[Option<PciId>]) -> Division {
    Division::new((bytes / SEGMENT) as u32, &nodes.of(gpus))
}

/// In the gpu server: whether there is a pool by now. The daemon sizes it when it has read its config.
pub(crate) fn has_pool() -> bool {
    number(POOL_VARIABLE).and_then(stat).is_some_and(|found| found.st_size > 0)
}

fn stat(descriptor: RawFd) -> Option<libc::stat> {
    // SAFETY: all zeros is a valid value of a struct of plain numbers.
    let mut found: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: fstat only looks; the struct is a live local.
    (unsafe { libc::fstat(descriptor, &raw mut found) } == 0).then_some(found)
}

fn number(variable: &str) -> Option<RawFd> {
    std::env::var(variable).ok()?.parse().ok()
}

fn inherited(variable: &str) -> Option<OwnedFd> {
    let number = number(variable)?;
    // SAFETY: fcntl only looks whether the number is an open descriptor.
    let open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } >= 0;
    // SAFETY: the descriptor is open, and nothing else in this fresh process owns it: the daemon passed it for this.
    open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
}

/// A file in memory, closed when a program is executed.
fn memory_file(name: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: a C string; the descriptor returned is owned by nobody else.
    let file = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC) };
    if file < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, as seen.
    Ok(unsafe { OwnedFd::from_raw_fd(file) })
}

/// A listening socket with an abstract name, which no file is left of.
fn listen(name: &str) -> io::Result<OwnedFd> {
    // The standard library has no sockets that keep packets apart.
    let address = SocketAddr::from_abstract_name(name)?;
    let text = address.as_abstract_name().unwrap_or_default();
    // SAFETY: plain numbers.
    let socket = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, as seen.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    // SAFETY: all zeros is a valid address.
    let mut bound: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    bound.sun_family = libc::AF_UNIX as libc::sa_family_t;
    for (to, from) in bound.sun_path.iter_mut().skip(1).zip(text) {
        *to = from.cast_signed();
    }
    let length = std::mem::offset_of!(libc::sockaddr_un, sun_path) + 1 + text.len();
    // SAFETY: the address lives through the call and is as long as it says.
    let failed = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const bound).cast(), length as libc::socklen_t) != 0
            || libc::listen(socket.as_raw_fd(), 64) != 0
    };
    if failed { Err(io::Error::last_os_error()) } else { Ok(socket) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_gpu_server_is_told_the_nodes_of_the_gpus() {
        let told = "0000:07:00.0=1 0000:b7:00.0=0";
        let setup = ParkSetup::new(0, GpuNodes::read(told)).unwrap();
        let handed = setup.hand_over(&mut Launch::new("gpu-server")).unwrap();
        let value = handed.iter().find(|(variable, _)| variable == NODES_VARIABLE).map(|(_, value)| value);
        assert_eq!(value.and_then(|value| value.to_str()), Some(told));
        // The daemon's own reckoning, by which it tells people: the same.
        let gpus = ["b7:00.0", "07:00.0"].map(|gpu| gpu.parse().ok());
        let ours = setup.division(4 * SEGMENT, &gpus);
        assert_eq!(ours, division(4 * SEGMENT, &GpuNodes::read(told), &gpus));
        assert_eq!((ours.near(0), ours.near(1)), (0..2, 2..4));
    }
}

//! Messages between the preload library in an engine and the memory server; both sides include this file.
//!
//! The socket is a `SOCK_SEQPACKET` one: each packet is one message. The server asks, the library answers with any
//! number of [`Kind::Batch`] and one [`Kind::Done`]; it speaks first only once, with [`Kind::Hello`].
//!
//! ```text
//! Close                    gate closed, device idle                      Done
//! List                     every chunk and where it is                   Batch* Done
//! Export  numbers          descriptors of chunks that are here           Batch+descriptors* Done
//! Release numbers          physical memory given up                      Done
//! Restore numbers          new physical memory, with descriptors         Batch+descriptors* Done
//! Filled  numbers          restored chunks hold what they held           Done
//! Open                     gate open; refused while a chunk is away      Done
//! ```
//!
//! A restored chunk counts as away until it is said to be filled; if the server goes away before, it is given up again.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Version of the messages; both sides come from one build. [`Kind::Hello`] keeps its number and the place of its value, so
/// that two builds that meet can tell.
pub const VERSION: u64 = 3;
/// Entries of a message at most.
pub const MOST_ENTRIES: usize = 2048;
/// Descriptors of a message at most.
pub const MOST_DESCRIPTORS: usize = 64;
/// Bytes of a message at most.
const LONGEST: usize = HEADER + MOST_ENTRIES * ENTRY;
const HEADER: usize = 16 + 8 * COUNTS;
const ENTRY: usize = 24;
/// Numbers in [`Message::counts`].
pub const COUNTS: usize = 7;

/// What a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Library: here I am; `value` is [`VERSION`].
    Hello = 1,
    /// Server: close the gate within `value` milliseconds.
    Close = 2,
    /// Server: open it.
    Open = 3,
    /// Server: tell every chunk.
    List = 4,
    /// Server: hand out these chunks.
    Export = 5,
    /// Server: give their memory up.
    Release = 6,
    /// Server: make it anew.
    Restore = 7,
    /// Library: chunks, in the order of the descriptors that come along.
    Batch = 8,
    /// Library: that was all; `code` is the driver's result.
    Done = 9,
    /// Server: what these chunks held has been copied back.
    Filled = 10,
}

impl Kind {
    fn from_number(number: u32) -> Option<Self> {
        [
            Self::Hello,
            Self::Close,
            Self::Open,
            Self::List,
            Self::Export,
            Self::Release,
            Self::Restore,
            Self::Batch,
            Self::Done,
            Self::Filled,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Place {
    /// On the device.
    Here = 0,
    /// Given up.
    Away = 1,
    /// On the device, and shared with others: it stays.
    Shared = 2,
}

/// One chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Its number, never used again in this process.
    pub number: u64,
    /// Its size, whole granules of 2 MiB.
    pub bytes: u64,
    /// Its GPU's place on the bus, 8 bits each: domain, bus, slot. Ordinals differ between processes.
    pub device: u32,
    /// Where it is.
    pub place: Place,
}

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// What it is.
    pub kind: Kind,
    /// A `CUresult`, or [`BUSY`].
    pub code: i32,
    /// See [`Kind`]; with a [`Kind::Done`] that failed the place in [`CALLS`] of the driver's call that did.
    pub value: u64,
    /// With [`Kind::Done`]: bytes here, away, shared; managed allocations; IPC handles refused; foreign memory opened;
    /// allocations from pools whose memory stays.
    pub counts: [u64; COUNTS],
    /// Chunks; a server's names them by number alone.
    pub entries: Vec<Entry>,
}

/// Driver calls that the library makes for the server. The first stands for none of them.
pub const CALLS: [&str; 9] = [
    "",
    "cuMemCreate",
    "cuMemMap",
    "cuMemSetAccess",
    "cuMemUnmap",
    "cuMemRelease",
    "cuMemExportToShareableHandle",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
];

/// [`Message::code`]: the engine did not come to rest in time, and goes on.
pub const BUSY: i32 = -1;

impl Message {
    /// A message of that kind with nothing in it.
    pub fn new(kind: Kind) -> Self {
        Self { kind, code: 0, value: 0, counts: [0; COUNTS], entries: Vec::new() }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + self.entries.len() * ENTRY);
        bytes.extend((self.kind as u32).to_le_bytes());
        bytes.extend(self.code.to_le_bytes());
        bytes.extend(self.value.to_le_bytes());
        self.counts.iter().for_each(|count| bytes.extend(count.to_le_bytes()));
        for entry in &self.entries {
            bytes.extend(entry.number.to_le_bytes());
            bytes.extend(entry.bytes.to_le_bytes());
            bytes.extend(entry.device.to_le_bytes());
            bytes.extend((entry.place as u32).to_le_bytes());
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        // Another version's hello may be shorter.
        let (header, entries) = bytes.split_at_checked(HEADER).unwrap_or((bytes, &[]));
        let mut counts = [0; COUNTS];
        for (at, count) in counts.iter_mut().enumerate() {
            *count = long(header, 16 + 8 * at).unwrap_or(0);
        }
        let entry = |bytes: &[u8]| {
            let place = match word(bytes, 20)? {
                0 => Place::Here,
                1 => Place::Away,
                _ => Place::Shared,
            };
            Some(Entry { number: long(bytes, 0)?, bytes: long(bytes, 8)?, device: word(bytes, 16)?, place })
        };
        Some(Self {
            kind: Kind::from_number(word(header, 0)?)?,
            code: word(header, 4)?.cast_signed(),
            value: long(header, 8)?,
            counts,
            entries: entries.chunks_exact(ENTRY).map(entry).collect::<Option<_>>()?,
        })
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// Room for the control message that carries descriptors, aligned for its header.
#[repr(C, align(8))]
struct Control([u8; 32 + 4 * MOST_DESCRIPTORS]);

/// Sends a message, with descriptors.
pub fn send(socket: BorrowedFd, message: &Message, descriptors: &[RawFd]) -> io::Result<()> {
    let mut bytes = message.bytes();
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 32 + 4 * MOST_DESCRIPTORS]);
    // SAFETY: an all-zero header is a valid one; its pointers are set to live locals below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    if !descriptors.is_empty() {
        let length = size_of_val(descriptors) as u32;
        header.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: CMSG_SPACE only computes.
        header.msg_controllen = unsafe { libc::CMSG_SPACE(length) } as usize;
        // SAFETY: the control buffer is aligned and has room for one header and MOST_DESCRIPTORS numbers.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&raw const header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = libc::CMSG_LEN(length) as usize;
            let data = libc::CMSG_DATA(first).cast::<RawFd>();
            std::ptr::copy_nonoverlapping(descriptors.as_ptr(), data, descriptors.len());
        }
    }
    loop {
        // SAFETY: the header points to live locals.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const header, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives a message with its descriptors; nothing at the end of the stream.
pub fn receive(socket: BorrowedFd) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = vec![0u8; LONGEST];
    let mut part = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; 32 + 4 * MOST_DESCRIPTORS]);
    // SAFETY: an all-zero header is a valid one; its pointers are set to live locals below.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_iov = &raw mut part;
    header.msg_iovlen = 1;
    header.msg_control = control.0.as_mut_ptr().cast();
    header.msg_controllen = size_of::<Control>();
    let received = loop {
        // SAFETY: the header points to live locals.
        let received = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut header, libc::MSG_CMSG_CLOEXEC) };
        if received >= 0 {
            break received as usize;
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    // SAFETY: the kernel has filled the header.
    let descriptors = unsafe { descriptors(&header) };
    if received == 0 {
        return Ok(None);
    }
    let broken = header.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0;
    match Message::from_bytes(&bytes[..received]) {
        Some(message) if !broken => Ok(Some((message, descriptors))),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "no message of the memory server's protocol")),
    }
}

/// The descriptors that came with a message.
///
/// # Safety
/// The header is one that `recvmsg` has filled.
unsafe fn descriptors(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut found = Vec::new();
    // SAFETY: the kernel wrote well-formed control messages; descriptors in them are this process's own from now on.
    unsafe {
        let mut control = libc::CMSG_FIRSTHDR(header);
        while !control.is_null() {
            if (*control).cmsg_level == libc::SOL_SOCKET && (*control).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(control).cast::<RawFd>();
                let count = ((*control).cmsg_len - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
                found.extend((0..count).map(|at| OwnedFd::from_raw_fd(data.add(at).read_unaligned())));
            }
            control = libc::CMSG_NXTHDR(header, control);
        }
    }
    found
}

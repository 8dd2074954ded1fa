//! Virtual memory management: physical memory is a memfd, an address range a mapping without access, and a mapping
//! of physical memory a fixed shared mapping over it. What is reserved but not mapped cannot be touched: a program
//! that does gets a fault, as a kernel on the GPU would.
//!
//! Physical memory lives until its last handle and its last mapping are gone; it is charged to the process that
//! created it.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_uint, c_ulonglong, c_void};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::api::{account, driver_api, put};
use crate::error::{Error, Outcome};
use crate::session;

/// The driver's smallest page of device memory.
const GRANULE: usize = 2 << 20;
/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const POSIX_DESCRIPTOR: c_int = 1;

/// `CUmemLocation`; kind 1 is a device.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Location {
    pub(crate) kind: c_int,
    pub(crate) id: c_int,
}

/// `CUmemAllocationProp`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Properties {
    kind: c_int,
    handle_types: c_int,
    location: Location,
    win32: *mut c_void,
    flags: [u8; 8],
}

/// `CUmemAccessDesc`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct Access {
    location: Location,
    flags: c_int,
}

/// `CUipcMemHandle`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct IpcHandle([u8; 64]);

#[derive(Debug)]
struct Physical {
    memory: OwnedFd,
    bytes: usize,
    ordinal: c_int,
    handle_types: c_int,
    handles: u32,
    mappings: u32,
    imported: bool,
}

#[derive(Debug, Clone, Copy)]
struct Mapping {
    bytes: usize,
    handle: u64,
}

#[derive(Debug, Default)]
struct State {
    physical: BTreeMap<u64, Physical>,
    reserved: BTreeMap<u64, usize>,
    mapped: BTreeMap<u64, Mapping>,
    /// Flags of each device at each mapping.
    access: BTreeMap<(u64, c_int), c_int>,
}

static STATE: Mutex<State> = Mutex::new(State {
    physical: BTreeMap::new(),
    reserved: BTreeMap::new(),
    mapped: BTreeMap::new(),
    access: BTreeMap::new(),
});
static NEXT_HANDLE: AtomicU64 = AtomicU64::new(0x5000_0001);

fn with<T>(action: impl FnOnce(&mut State) -> T) -> T {
    action(&mut STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

fn whole(bytes: usize) -> Outcome {
    if bytes > 0 && bytes.is_multiple_of(GRANULE) { Ok(()) } else { Err(Error::INVALID_VALUE) }
}

impl State {
    fn reserved(&self, address: u64, bytes: usize) -> bool {
        self.reserved
            .range(..=address)
            .next_back()
            .is_some_and(|(start, length)| address + bytes as u64 <= start + *length as u64)
    }

    /// The mappings that make up exactly this range.
    fn mappings(&self, address: u64, bytes: usize) -> Result<Vec<(u64, Mapping)>, Error> {
        let end = address + bytes as u64;
        let found: Vec<_> = self.mapped.range(address..end).map(|(&at, &it)| (at, it)).collect();
        let covered: usize = found.iter().map(|(_, mapping)| mapping.bytes).sum();
        if covered == bytes { Ok(found) } else { Err(Error::INVALID_VALUE) }
    }

    /// Forgets physical memory that has neither handle nor mapping.
    fn settle(&mut self, handle: u64) -> Outcome {
        let unused = |it: &Physical| it.handles == 0 && it.mappings == 0;
        if self.physical.get(&handle).is_some_and(unused)
            && let Some(gone) = self.physical.remove(&handle)
        {
            let (table, record) = account()?;
            if gone.imported {
                record.imported.fetch_sub(1, Ordering::SeqCst);
            } else {
                table.refund(record, session::gpu(gone.ordinal)?, gone.bytes as u64);
            }
        }
        Ok(())
    }
}

fn create(out: *mut u64, bytes: usize, properties: *const Properties) -> Outcome {
    whole(bytes)?;
    // SAFETY: the driver's contract has the caller pass the properties, or null, which is refused.
    let properties = unsafe { properties.as_ref() }.copied().ok_or(Error::INVALID_VALUE)?;
    let gpu = session::gpu(properties.location.id)?;
    let (table, record) = account()?;
    if !table.charge(record, gpu, bytes as u64) {
        return Err(Error::OUT_OF_MEMORY);
    }
    // SAFETY: a constant name; the descriptor returned is owned by nobody else.
    let memory = unsafe { libc::memfd_create(c"software-gpu".as_ptr(), libc::MFD_CLOEXEC) };
    if memory < 0 {
        table.refund(record, gpu, bytes as u64);
        return Err(Error::OPERATING_SYSTEM);
    }
    // SAFETY: just opened, as seen.
    let memory = unsafe { OwnedFd::from_raw_fd(memory) };
    // SAFETY: the descriptor is open.
    if unsafe { libc::ftruncate(memory.as_raw_fd(), bytes as libc::off_t) } != 0 {
        table.refund(record, gpu, bytes as u64);
        return Err(Error::OPERATING_SYSTEM);
    }
    let ordinal = properties.location.id;
    let handle_types = properties.handle_types;
    adopt(out, Physical { memory, bytes, ordinal, handle_types, handles: 1, mappings: 0, imported: false })
}

fn adopt(out: *mut u64, physical: Physical) -> Outcome {
    let handle = NEXT_HANDLE.fetch_add(1, Ordering::Relaxed);
    with(|state| state.physical.insert(handle, physical));
    put(out, handle)
}

fn export(out: *mut c_int, handle: u64, kind: c_int) -> Outcome {
    let duplicate = with(|state| {
        let physical = state.physical.get(&handle).ok_or(Error::INVALID_VALUE)?;
        // The driver does not export what it has imported.
        if physical.imported || kind != POSIX_DESCRIPTOR || physical.handle_types & kind == 0 {
            return Err(Error::INVALID_VALUE);
        }
        physical.memory.try_clone().map_err(|_| Error::OPERATING_SYSTEM)
    })?;
    put(out, duplicate.into_raw_fd())
}

fn import(out: *mut u64, descriptor: c_int, kind: c_int) -> Outcome {
    if kind != POSIX_DESCRIPTOR {
        return Err(Error::NOT_SUPPORTED);
    }
    // SAFETY: dup takes any number and fails on one that is not open.
    let memory = unsafe { libc::fcntl(descriptor, libc::F_DUPFD_CLOEXEC, 0) };
    if memory < 0 {
        return Err(Error::INVALID_VALUE);
    }
    // SAFETY: just opened, as seen.
    let memory = unsafe { OwnedFd::from_raw_fd(memory) };
    // SAFETY: an all-zero stat is valid and fstat fills it.
    let mut status: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: an open descriptor and a live struct.
    if unsafe { libc::fstat(memory.as_raw_fd(), &raw mut status) } != 0 {
        return Err(Error::OPERATING_SYSTEM);
    }
    let bytes = status.st_size as usize;
    whole(bytes)?;
    account()?.1.imported.fetch_add(1, Ordering::SeqCst);
    adopt(
        out,
        Physical { memory, bytes, ordinal: 0, handle_types: 0, handles: 1, mappings: 0, imported: true },
    )
}

/// A mapping without access, and its address; `fixed` puts it over what is there.
fn barren(fixed: Option<u64>, bytes: usize) -> Result<u64, Error> {
    let flags = libc::MAP_PRIVATE
        | libc::MAP_ANONYMOUS
        | libc::MAP_NORESERVE
        | if fixed.is_some() { libc::MAP_FIXED } else { 0 };
    let hint = fixed.unwrap_or(0) as *mut c_void;
    // SAFETY: a fresh mapping, or one over a range that this module reserved.
    let address = unsafe { libc::mmap(hint, bytes, libc::PROT_NONE, flags, -1, 0) };
    if address == libc::MAP_FAILED { Err(Error::OUT_OF_MEMORY) } else { Ok(address as u64) }
}

fn reserve(out: *mut u64, bytes: usize, alignment: usize) -> Outcome {
    whole(bytes)?;
    let alignment = alignment.max(GRANULE);
    if !alignment.is_power_of_two() {
        return Err(Error::INVALID_VALUE);
    }
    let room = barren(None, bytes + alignment)?;
    let address = room.next_multiple_of(alignment as u64);
    let (before, after) = ((address - room) as usize, alignment - (address - room) as usize);
    // SAFETY: both ends lie in the mapping just made and outside the range that is kept.
    unsafe {
        if before > 0 {
            libc::munmap(room as *mut c_void, before);
        }
        if after > 0 {
            libc::munmap((address + bytes as u64) as *mut c_void, after);
        }
    }
    with(|state| state.reserved.insert(address, bytes));
    put(out, address)
}

fn give_range_back(address: u64, bytes: usize) -> Outcome {
    with(|state| {
        let busy = state.mapped.range(address..address + bytes as u64).next().is_some();
        if busy || state.reserved.get(&address) != Some(&bytes) {
            return Err(Error::INVALID_VALUE);
        }
        state.reserved.remove(&address);
        // SAFETY: the range was reserved by this module, nothing is mapped in it, and it is forgotten.
        unsafe { libc::munmap(address as *mut c_void, bytes) };
        Ok(())
    })
}

fn map(address: u64, bytes: usize, offset: usize, handle: u64) -> Outcome {
    whole(bytes)?;
    with(|state| {
        let free = state.mapped.range(address..address + bytes as u64).next().is_none()
            && state
                .mapped
                .range(..address)
                .next_back()
                .is_none_or(|(at, mapping)| at + mapping.bytes as u64 <= address);
        let reserved = state.reserved(address, bytes);
        let physical = state.physical.get_mut(&handle).ok_or(Error::INVALID_VALUE)?;
        if !free || !reserved || physical.handles == 0 || offset + bytes > physical.bytes {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: over a range reserved by this module with nothing mapped in it.
        let mapped = unsafe {
            libc::mmap(
                address as *mut c_void,
                bytes,
                libc::PROT_NONE,
                libc::MAP_SHARED | libc::MAP_FIXED,
                physical.memory.as_raw_fd(),
                offset as libc::off_t,
            )
        };
        if mapped == libc::MAP_FAILED {
            return Err(Error::OUT_OF_MEMORY);
        }
        physical.mappings += 1;
        state.mapped.insert(address, Mapping { bytes, handle });
        Ok(())
    })
}

fn unmap(address: u64, bytes: usize) -> Outcome {
    with(|state| {
        for (at, mapping) in state.mappings(address, bytes)? {
            barren(Some(at), mapping.bytes)?;
            state.mapped.remove(&at);
            state.access.retain(|(mapped, _), _| *mapped != at);
            if let Some(physical) = state.physical.get_mut(&mapping.handle) {
                physical.mappings -= 1;
            }
            state.settle(mapping.handle)?;
        }
        Ok(())
    })
}

fn set_access(address: u64, bytes: usize, access: &[Access]) -> Outcome {
    let protection = match access.iter().map(|it| it.flags).max() {
        Some(3) => libc::PROT_READ | libc::PROT_WRITE,
        Some(1) => libc::PROT_READ,
        Some(0) => libc::PROT_NONE,
        _ => return Err(Error::INVALID_VALUE),
    };
    with(|state| {
        for (at, _) in state.mappings(address, bytes)? {
            state.access.extend(access.iter().map(|it| ((at, it.location.id), it.flags)));
        }
        Ok(())
    })?;
    // SAFETY: the range consists of mappings that this module made.
    if unsafe { libc::mprotect(address as *mut c_void, bytes, protection) } != 0 {
        return Err(Error::OPERATING_SYSTEM);
    }
    Ok(())
}

/// Whether a handle is one of physical memory.
pub(crate) fn handle_is_known(handle: u64) -> bool {
    with(|state| state.physical.get(&handle).is_some_and(|it| it.handles > 0))
}

/// Whether mappings make up exactly this range.
pub(crate) fn is_mapped(address: u64, bytes: usize) -> bool {
    with(|state| state.mappings(address, bytes).is_ok())
}

fn release(handle: u64) -> Outcome {
    with(|state| {
        let physical = state.physical.get_mut(&handle).filter(|it| it.handles > 0);
        physical.ok_or(Error::INVALID_VALUE)?.handles -= 1;
        state.settle(handle)
    })
}

driver_api! {
    open fn cuMemGetAllocationGranularity(out: *mut usize, _properties: *const Properties, _option: c_int) {
        put(out, GRANULE)
    }

    gated fn cuMemCreate(out: *mut u64, bytes: usize, properties: *const Properties, _flags: c_ulonglong) {
        create(out, bytes, properties)
    }

    gated fn cuMemRelease(handle: u64) { release(handle) }

    gated fn cuMemAddressReserve(
        out: *mut u64,
        bytes: usize,
        alignment: usize,
        _wanted: u64,
        _flags: c_ulonglong,
    ) {
        reserve(out, bytes, alignment)
    }

    gated fn cuMemAddressFree(address: u64, bytes: usize) { give_range_back(address, bytes) }

    gated fn cuMemMap(address: u64, bytes: usize, offset: usize, handle: u64, _flags: c_ulonglong) {
        map(address, bytes, offset, handle)
    }

    gated fn cuMemUnmap(address: u64, bytes: usize) { unmap(address, bytes) }

    gated fn cuMemSetAccess(address: u64, bytes: usize, access: *const Access, count: usize) {
        if access.is_null() {
            return Err(Error::INVALID_VALUE);
        }
        // SAFETY: not null, and the driver's contract has the caller pass `count` of them.
        set_access(address, bytes, unsafe { std::slice::from_raw_parts(access, count) })
    }

    gated fn cuMemGetAccess(flags: *mut c_ulonglong, location: *const Location, address: u64) {
        // SAFETY: the driver's contract has the caller pass a location, or null, which is refused.
        let location = unsafe { location.as_ref() }.ok_or(Error::INVALID_VALUE)?;
        let found = with(|state| {
            let (at, mapping) = state.mapped.range(..=address).next_back()?;
            (address < at + mapping.bytes as u64).then_some(())?;
            Some(state.access.get(&(*at, location.id)).copied().unwrap_or(0))
        });
        put(flags, found.ok_or(Error::INVALID_VALUE)? as c_ulonglong)
    }

    gated fn cuMemRetainAllocationHandle(out: *mut u64, address: *mut c_void) {
        let address = address as u64;
        let handle = with(|state| {
            let (at, mapping) =
                state.mapped.range(..=address).next_back().map(|(&at, &it)| (at, it))?;
            (address < at + mapping.bytes as u64).then_some(())?;
            state.physical.get_mut(&mapping.handle)?.handles += 1;
            Some(mapping.handle)
        });
        put(out, handle.ok_or(Error::INVALID_VALUE)?)
    }

    open fn cuMemGetAllocationPropertiesFromHandle(out: *mut Properties, handle: u64) {
        let (handle_types, id) = with(|state| {
            state.physical.get(&handle).map(|physical| (physical.handle_types, physical.ordinal))
        })
        .ok_or(Error::INVALID_VALUE)?;
        put(out, Properties {
            kind: 1,
            handle_types,
            location: Location { kind: 1, id },
            win32: std::ptr::null_mut(),
            flags: [0; 8],
        })
    }

    gated fn cuMemGetHandleForAddressRange(
        out: *mut c_void,
        address: u64,
        _bytes: usize,
        _kind: c_int,
        _flags: c_ulonglong,
    ) {
        let duplicate = with(|state| {
            let (_, mapping) = state.mapped.range(..=address).next_back().ok_or(Error::INVALID_VALUE)?;
            let physical = state.physical.get(&mapping.handle).ok_or(Error::INVALID_VALUE)?;
            physical.memory.try_clone().map_err(|_| Error::OPERATING_SYSTEM)
        })?;
        put(out.cast::<c_int>(), duplicate.into_raw_fd())
    }

    gated fn cuMemExportToShareableHandle(
        out: *mut c_void,
        handle: u64,
        kind: c_int,
        _flags: c_ulonglong,
    ) {
        export(out.cast(), handle, kind)
    }

    gated fn cuMemImportFromShareableHandle(out: *mut u64, descriptor: *mut c_void, kind: c_int) {
        import(out, descriptor as c_int, kind)
    }

    gated fn cuIpcGetMemHandle(out: *mut IpcHandle, address: u64) {
        // Memory from cuMemCreate has no legacy handle.
        if with(|state| state.reserved(address, 1)) {
            return Err(Error::INVALID_VALUE);
        }
        let mut handle = [0; 64];
        handle[..8].copy_from_slice(&address.to_le_bytes());
        put(out, IpcHandle(handle))
    }

    gated fn cuIpcOpenMemHandle_v2(out: *mut u64, _handle: IpcHandle, _flags: c_uint) {
        // Only the account matters: the memory itself is not shared.
        account()?.1.ipc.fetch_add(1, Ordering::SeqCst);
        put(out, barren(None, GRANULE)?)
    }

    gated fn cuIpcCloseMemHandle(_address: u64) {
        account()?.1.ipc.fetch_sub(1, Ordering::SeqCst);
        Ok(())
    }
}

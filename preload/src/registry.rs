//! What device memory the engine holds through this library.
//!
//! ```text
//!  region (one cuMemAlloc) ──┐
//!                            ├─▶ mapping (address, access) ──▶ chunk (physical memory: here, or away)
//!  engine's own cuMemMap ────┘
//! ```
//!
//! A chunk is here, away, or between the two: made anew and not filled yet. A chunk's number never changes and is what the engine holds as its handle; the driver's handle behind it changes
//! with each swap. A chunk that is away has no physical memory; its mappings are remembered and made again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::driver::{self, Access, INVALID_VALUE, POSIX_DESCRIPTOR, Properties, SUCCESS};
use crate::virtual_memory::real;
use crate::wire::CALLS;

/// Allocations below this many bytes stay with the driver, which packs them.
pub(crate) const SMALLEST: usize = 1 << 20;
/// The driver's smallest page of device memory, on every GPU that has virtual memory management.
pub(crate) const GRANULE: usize = 2 << 20;
/// Bytes of the largest chunk of a region: large ones are created faster, small ones can stay behind one by one.
const LARGEST_CHUNK: usize = 256 << 20;
/// Upper half of a handle given to the engine.
const HANDLE_MARK: u64 = 0x5357_5053 << 32;

/// Physical memory.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) bytes: usize,
    /// As the driver is asked for it.
    pub(crate) properties: Properties,
    /// Handle types that the engine asked for.
    pub(crate) wanted_types: c_int,
    /// Its GPU's place on the bus.
    pub(crate) bus: u32,
    /// The driver's handle; nothing while it has no memory.
    pub(crate) real: Option<u64>,
    /// Whether its memory holds what the engine put there. Without it the chunk is as good as away.
    pub(crate) filled: bool,
    /// Handles that the engine holds.
    handles: u32,
    /// Shared with another process by the engine: never taken away.
    pub(crate) stays: bool,
    /// Addresses at which it is mapped.
    mappings: Vec<u64>,
}

#[derive(Debug)]
struct Mapping {
    bytes: usize,
    chunk: u64,
    access: Vec<Access>,
}

/// One `cuMemAlloc`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Region {
    /// As the engine asked.
    pub(crate) bytes: usize,
    /// Whole granules.
    pub(crate) reserved: usize,
    pub(crate) device: c_int,
}

/// Everything held.
#[derive(Debug)]
pub(crate) struct Registry {
    chunks: BTreeMap<u64, Chunk>,
    mappings: BTreeMap<u64, Mapping>,
    regions: BTreeMap<u64, Region>,
    /// Contexts with the device of each.
    contexts: Vec<(usize, c_int)>,
    /// Devices that reach another one's memory: who, whose.
    peers: Vec<(c_int, c_int)>,
    next: u64,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    chunks: BTreeMap::new(),
    mappings: BTreeMap::new(),
    regions: BTreeMap::new(),
    contexts: Vec::new(),
    peers: Vec::new(),
    next: 1,
});

/// The registry, locked.
pub(crate) fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A driver call's result as a `Result`.
pub(crate) fn check(code: c_int) -> Result<(), c_int> {
    if code == SUCCESS { Ok(()) } else { Err(code) }
}

/// A driver call's result as a `Result`; a failure is noted as the last one of this thread.
pub(crate) fn called(call: &'static str, code: c_int) -> Result<(), c_int> {
    if code != SUCCESS {
        FAILED.set(CALLS.iter().position(|known| *known == call).unwrap_or(0) as u64);
    }
    check(code)
}

thread_local! {
    static FAILED: Cell<u64> = const { Cell::new(0) };
}

/// Which call has last failed on this thread, by its place in [`CALLS`]; asked once.
pub(crate) fn failed_call() -> u64 {
    FAILED.replace(0)
}

/// The chunk behind a handle that this library gave out.
pub(crate) fn chunk_of(handle: u64) -> Option<u64> {
    (handle & !0xffff_ffff == HANDLE_MARK).then_some(handle & 0xffff_ffff)
}

/// The handle that the engine gets for a chunk.
pub(crate) fn handle_of(chunk: u64) -> u64 {
    HANDLE_MARK | chunk
}

impl Registry {
    /// Notes the current context, which is waited for before memory goes.
    pub(crate) fn note_context(&mut self) {
        if let Some(context) = driver::current_context()
            && !self.contexts.iter().any(|(known, _)| *known == context as usize)
            && let Some(device) = driver::device()
        {
            self.contexts.push((context as usize, device));
        }
    }

    /// Every context noted.
    pub(crate) fn contexts(&self) -> Vec<usize> {
        self.contexts.iter().map(|(context, _)| *context).collect()
    }

    /// Those of one device.
    pub(crate) fn contexts_on(&self, device: c_int) -> Vec<usize> {
        self.contexts.iter().filter(|(_, its)| *its == device).map(|(context, _)| *context).collect()
    }

    /// A region of device memory; its address.
    pub(crate) fn allocate(&mut self, bytes: usize, device: c_int) -> Result<u64, c_int> {
        let reserved = bytes.next_multiple_of(GRANULE);
        let mut address = 0;
        // SAFETY: the pointer is to a live local.
        check(unsafe { driver::cuMemAddressReserve(&raw mut address, reserved, 0, 0, 0) })?;
        self.regions.insert(address, Region { bytes, reserved, device });
        match self.back(address, reserved, device) {
            Ok(()) => {
                self.note_context();
                Ok(address)
            }
            Err(code) => {
                // The first failure is the one to tell.
                let _ = self.free(address);
                Err(code)
            }
        }
    }

    fn back(&mut self, address: u64, reserved: usize, device: c_int) -> Result<(), c_int> {
        let mut done = 0;
        while done < reserved {
            let bytes = (reserved - done).min(LARGEST_CHUNK);
            let chunk = self.create(bytes, Properties::on_device(device), 0)?;
            if let Err(code) = self.map(address + done as u64, bytes, chunk) {
                self.settle(chunk);
                return Err(code);
            }
            done += bytes;
        }
        let who = self.peers.iter().filter(|(_, whose)| *whose == device).map(|(who, _)| *who);
        let access: Vec<_> = std::iter::once(device).chain(who).map(Access::full).collect();
        self.grant(address, reserved, &access)
    }

    /// From now on one device reaches the regions of another, as it does those that the driver allocates.
    pub(crate) fn let_reach(&mut self, who: c_int, whose: c_int) -> Result<(), c_int> {
        if who == whose || self.peers.contains(&(who, whose)) {
            return Ok(());
        }
        self.peers.push((who, whose));
        let regions: Vec<_> = self
            .regions
            .iter()
            .filter(|(_, region)| region.device == whose)
            .map(|(&at, &it)| (at, it))
            .collect();
        regions.into_iter().try_for_each(|(at, region)| self.grant(at, region.reserved, &[Access::full(who)]))
    }

    /// Gives a region back; nothing if none begins there. Nobody may use it any more.
    pub(crate) fn free(&mut self, address: u64) -> Result<(), c_int> {
        let region = *self.regions.get(&address).ok_or(INVALID_VALUE)?;
        let mapped: Vec<_> = self.within(address, region.reserved).collect();
        for at in mapped {
            self.unmap_one(at)?;
        }
        // SAFETY: the range was reserved for this region and nothing is mapped in it any more.
        check(unsafe { driver::cuMemAddressFree(address, region.reserved) })?;
        // Only now: after a refusal of the driver it can be tried again.
        self.regions.remove(&address);
        Ok(())
    }

    /// A region is used anew, for that many bytes.
    pub(crate) fn resize(&mut self, address: u64, bytes: usize) {
        if let Some(region) = self.regions.get_mut(&address) {
            region.bytes = bytes;
        }
    }

    /// The region that an address lies in, with its beginning.
    pub(crate) fn region_at(&self, address: u64) -> Option<(u64, Region)> {
        let (&start, &region) = self.regions.range(..=address).next_back()?;
        (address < start + region.reserved as u64).then_some((start, region))
    }

    /// Bytes held on a device.
    pub(crate) fn held(&self, device: c_int) -> usize {
        let on = |chunk: &&Chunk| chunk.properties.location.id == device;
        self.chunks.values().filter(on).map(|chunk| chunk.bytes).sum()
    }

    /// New physical memory with so many handles of the engine's.
    pub(crate) fn create(
        &mut self,
        bytes: usize,
        properties: Properties,
        handles: u32,
    ) -> Result<u64, c_int> {
        let wanted_types = properties.handle_types;
        let properties = Properties { handle_types: POSIX_DESCRIPTOR, ..properties };
        let number = self.next;
        let real = Some(create_physical(bytes, &properties)?);
        self.next += 1;
        let chunk = Chunk {
            bytes,
            properties,
            wanted_types,
            bus: driver::bus(properties.location.id),
            real,
            filled: true,
            handles,
            stays: false,
            mappings: Vec::new(),
        };
        self.chunks.insert(number, chunk);
        Ok(number)
    }

    /// The engine gets one more handle to a chunk.
    pub(crate) fn retain(&mut self, chunk: u64) {
        if let Some(chunk) = self.chunks.get_mut(&chunk) {
            chunk.handles += 1;
        }
    }

    /// The engine gives a handle back.
    pub(crate) fn release(&mut self, number: u64) -> Result<(), c_int> {
        let chunk = self.chunks.get_mut(&number).filter(|chunk| chunk.handles > 0).ok_or(INVALID_VALUE)?;
        chunk.handles -= 1;
        self.settle(number);
        Ok(())
    }

    /// A chunk.
    pub(crate) fn chunk(&mut self, number: u64) -> Option<&mut Chunk> {
        self.chunks.get_mut(&number)
    }

    /// Every chunk with its number.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, &Chunk)> {
        self.chunks.iter().map(|(&number, chunk)| (number, chunk))
    }

    /// The chunk mapped at an address.
    pub(crate) fn chunk_at(&self, address: u64) -> Option<u64> {
        let (&start, mapping) = self.mappings.range(..=address).next_back()?;
        (address < start + mapping.bytes as u64).then_some(mapping.chunk)
    }

    /// Maps a whole chunk.
    pub(crate) fn map(&mut self, address: u64, bytes: usize, number: u64) -> Result<(), c_int> {
        let chunk = self.chunks.get_mut(&number).ok_or(INVALID_VALUE)?;
        if let Some(real) = chunk.real {
            // SAFETY: the caller's own address and range; the driver checks both.
            check(unsafe { real::cuMemMap(address, bytes, 0, real, 0) })?;
        }
        chunk.mappings.push(address);
        self.mappings.insert(address, Mapping { bytes, chunk: number, access: Vec::new() });
        Ok(())
    }

    /// The chunks of a range are another process's or device's too: they stay where they are.
    pub(crate) fn let_stay(&mut self, address: u64, bytes: usize) {
        let (first, end) = (self.chunk_at(address), address + bytes as u64);
        let more = self.mappings.range(address..end).map(|(_, mapping)| mapping.chunk);
        for number in first.into_iter().chain(more).collect::<Vec<_>>() {
            if let Some(chunk) = self.chunks.get_mut(&number) {
                chunk.stays = true;
            }
        }
    }

    /// Whether any of this registry's mappings begins in the range.
    pub(crate) fn has_mappings(&self, address: u64, bytes: usize) -> bool {
        self.within(address, bytes).next().is_some()
    }

    /// Unmaps every mapping in the range; what lies between this registry's is the driver's own.
    pub(crate) fn unmap(&mut self, address: u64, bytes: usize) -> Result<(), c_int> {
        let mapped: Vec<_> = self.within(address, bytes).map(|at| (at, self.mappings[&at].bytes)).collect();
        let end = address + bytes as u64;
        if mapped.last().is_some_and(|(at, bytes)| at + *bytes as u64 > end) {
            return Err(INVALID_VALUE);
        }
        let mut done = address;
        for (at, bytes) in mapped {
            unmap_foreign(done, at)?;
            self.unmap_one(at)?;
            done = at + bytes as u64;
        }
        unmap_foreign(done, end)
    }

    /// Sets who may use the range, on the device and in the record.
    pub(crate) fn grant(&mut self, address: u64, bytes: usize, access: &[Access]) -> Result<(), c_int> {
        let mapped: Vec<_> = self.within(address, bytes).collect();
        let here = mapped.iter().all(|at| self.is_here(*at));
        if here {
            // SAFETY: the caller's own range; the slice holds as many as it says.
            check(unsafe { real::cuMemSetAccess(address, bytes, access.as_ptr(), access.len()) })?;
        }
        for at in mapped {
            if let Some(mapping) = self.mappings.get_mut(&at) {
                mapping.access.retain(|old| access.iter().all(|new| new.location != old.location));
                mapping.access.extend_from_slice(access);
            }
        }
        Ok(())
    }

    /// Takes a chunk's physical memory away. What it held is lost, unless somebody else has it.
    pub(crate) fn take_away(&mut self, number: u64) -> Result<(), c_int> {
        let Some(chunk) = self.chunks.get_mut(&number) else { return Ok(()) };
        let Some(handle) = chunk.real else { return Ok(()) };
        let mut unmapped = Vec::new();
        let gone = chunk.mappings.iter().try_for_each(|&at| {
            let mapping = self.mappings.get(&at).ok_or(INVALID_VALUE)?;
            // SAFETY: mapped there by this registry; the gate is closed and the device idle.
            called("cuMemUnmap", unsafe { real::cuMemUnmap(at, mapping.bytes) })?;
            unmapped.push((at, mapping));
            Ok(())
        });
        // SAFETY: the registry's own handle, forgotten here.
        let gone = gone.and_then(|()| called("cuMemRelease", unsafe { real::cuMemRelease(handle) }));
        if let Err(code) = gone {
            let failed = FAILED.get();
            let back = unmapped.into_iter().try_for_each(|(at, mapping)| map_again(at, mapping, handle));
            FAILED.set(failed);
            if back.is_ok() {
                return Err(code);
            }
            // Neither here nor gone: from now on it is away, and what is left of it serves nobody.
            for &at in &chunk.mappings {
                let bytes = self.mappings.get(&at).map_or(0, |mapping| mapping.bytes);
                // SAFETY: the registry's own addresses; the driver refuses one at which nothing is mapped.
                unsafe { real::cuMemUnmap(at, bytes) };
            }
            // SAFETY: as above.
            unsafe { real::cuMemRelease(handle) };
            chunk.real = None;
            chunk.filled = false;
            return Err(code);
        }
        chunk.real = None;
        chunk.filled = false;
        Ok(())
    }

    /// Gives a chunk new physical memory under its old addresses. What it holds is not defined.
    pub(crate) fn bring_back(&mut self, number: u64) -> Result<(), c_int> {
        let Some(chunk) = self.chunks.get_mut(&number) else { return Ok(()) };
        if chunk.real.is_some() {
            return Ok(());
        }
        let handle = create_physical(chunk.bytes, &chunk.properties)?;
        let mut done = Vec::new();
        let outcome = chunk.mappings.iter().try_for_each(|&at| {
            let mapping = self.mappings.get(&at).ok_or(INVALID_VALUE)?;
            done.push((at, mapping.bytes));
            map_again(at, mapping, handle)
        });
        if let Err(code) = outcome {
            // The first failure is the one to tell.
            for (at, bytes) in done {
                // SAFETY: mapped just now; the driver refuses an address at which nothing is.
                unsafe { real::cuMemUnmap(at, bytes) };
            }
            // SAFETY: made just now and known to nobody.
            unsafe { real::cuMemRelease(handle) };
            return Err(code);
        }
        chunk.real = Some(handle);
        Ok(())
    }

    /// Gives up memory that was made anew and not filled.
    pub(crate) fn drop_unfilled(&mut self) {
        let unfilled: Vec<u64> =
            self.chunks.iter().filter(|(_, chunk)| !chunk.filled).map(|(&number, _)| number).collect();
        for number in unfilled {
            // The driver's refusal leaves the chunk as it is: unfilled, and so still away.
            let _ = self.take_away(number);
        }
    }

    fn within(&self, address: u64, bytes: usize) -> impl Iterator<Item = u64> {
        self.mappings.range(address..address + bytes as u64).map(|(&at, _)| at)
    }

    fn is_here(&self, address: u64) -> bool {
        let chunk = self.mappings.get(&address).and_then(|mapping| self.chunks.get(&mapping.chunk));
        chunk.is_some_and(|chunk| chunk.real.is_some())
    }

    fn unmap_one(&mut self, address: u64) -> Result<(), c_int> {
        let here = self.is_here(address);
        let Some(mapping) = self.mappings.get(&address) else { return Ok(()) };
        if here {
            // SAFETY: mapped there by this registry.
            check(unsafe { real::cuMemUnmap(address, mapping.bytes) })?;
        }
        let number = mapping.chunk;
        self.mappings.remove(&address);
        if let Some(chunk) = self.chunks.get_mut(&number) {
            chunk.mappings.retain(|&at| at != address);
        }
        self.settle(number);
        Ok(())
    }

    /// Forgets a chunk that has neither handle nor mapping.
    fn settle(&mut self, number: u64) {
        let unused = |chunk: &Chunk| chunk.handles == 0 && chunk.mappings.is_empty();
        if self.chunks.get(&number).is_some_and(unused)
            && let Some(Chunk { real: Some(handle), .. }) = self.chunks.remove(&number)
        {
            // SAFETY: the registry's own handle, forgotten here. A refusal leaves nothing to be done.
            unsafe { real::cuMemRelease(handle) };
        }
    }
}

/// Maps memory at an address that had some before, with the access that it had.
fn map_again(at: u64, mapping: &Mapping, handle: u64) -> Result<(), c_int> {
    // SAFETY: the address is still reserved and nothing is mapped there while the chunk is away.
    called("cuMemMap", unsafe { real::cuMemMap(at, mapping.bytes, 0, handle, 0) })?;
    if mapping.access.is_empty() {
        return Ok(());
    }
    // SAFETY: just mapped; the vector holds as many as it says.
    called("cuMemSetAccess", unsafe {
        real::cuMemSetAccess(at, mapping.bytes, mapping.access.as_ptr(), mapping.access.len())
    })
}

/// Unmaps what the driver itself has mapped between two addresses.
fn unmap_foreign(from: u64, to: u64) -> Result<(), c_int> {
    // SAFETY: part of the caller's own range; the driver checks what is mapped there.
    if from < to { check(unsafe { real::cuMemUnmap(from, (to - from) as usize) }) } else { Ok(()) }
}

fn create_physical(bytes: usize, properties: &Properties) -> Result<u64, c_int> {
    let mut handle = 0;
    // SAFETY: both pointers are to live values.
    called("cuMemCreate", unsafe { real::cuMemCreate(&raw mut handle, bytes, properties, 0) })?;
    Ok(handle)
}

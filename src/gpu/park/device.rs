//! One GPU as the memory server uses it: a context, and workbenches on which chunks of engines are mapped for a while.
//!
//! A workbench has a range of addresses as large as the GPU, two streams, and room for digests. Workbenches are made
//! when they are first needed and kept: out and in at the same time take two.

use std::collections::BTreeSet;
use std::ffi::{c_int, c_void};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::cuda::{self, Access, Handle, Location, check};
use super::server::invalid;
use super::wire::Entry;
use crate::gpu::digest::{BLOCK, Digest, KERNEL, Key, LANES, PTX};
use crate::gpu::protocol::Refusal;

/// Streams of a workbench: while one ends a copy the other is under way.
const STREAMS: usize = 2;

/// A GPU.
#[derive(Debug)]
pub(super) struct Device {
    ordinal: c_int,
    bus: u32,
    bytes: u64,
    context: usize,
    kernel: usize,
    key: Key,
    benches: Mutex<Vec<Bench>>,
}

/// A workbench that nobody uses.
#[derive(Debug)]
struct Bench {
    window: u64,
    streams: [usize; STREAMS],
    digests: u64,
    copied_digests: usize,
}

impl Device {
    /// Opens the GPU: its primary context, and the digest kernel with the run's key.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn open(ordinal: u32, key: Key) -> Result<Self, Refusal> {
        let on = format!("GPU {ordinal}");
        let ordinal = ordinal.cast_signed();
        let (mut handle, mut context, mut bytes) = (0, std::ptr::null_mut(), 0);
        // SAFETY: every pointer is to a live local; the PTX is a C string.
        unsafe {
            check("cuDeviceGet", &on, cuda::cuDeviceGet(&raw mut handle, ordinal))?;
            can_park(handle, &on)?;
            check("cuDeviceTotalMem", &on, cuda::cuDeviceTotalMem_v2(&raw mut bytes, handle))?;
            check("cuDevicePrimaryCtxRetain", &on, cuda::cuDevicePrimaryCtxRetain(&raw mut context, handle))?;
            check("cuCtxSetCurrent", &on, cuda::cuCtxSetCurrent(context))?;
            let (mut module, mut kernel) = (std::ptr::null_mut(), std::ptr::null_mut());
            check("cuModuleLoadData", &on, cuda::cuModuleLoadData(&raw mut module, PTX.as_ptr().cast()))?;
            let found = cuda::cuModuleGetFunction(&raw mut kernel, module, KERNEL.as_ptr());
            check("cuModuleGetFunction", &on, found)?;
            Ok(Self {
                ordinal,
                bus: bus(handle),
                bytes: bytes as u64,
                context: context as usize,
                kernel: kernel as usize,
                key,
                benches: Mutex::new(Vec::new()),
            })
        }
    }

    /// Its place on the bus, as the preload library tells it.
    pub(super) fn bus(&self) -> u32 {
        self.bus
    }

    /// Makes its context the current one of this thread.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn enter(&self) -> Result<(), Refusal> {
        // SAFETY: a primary context that is retained for the life of the process.
        check("cuCtxSetCurrent", &self.name(), unsafe { cuda::cuCtxSetCurrent(self.context as Handle) })
    }

    fn name(&self) -> String {
        format!("GPU {}", self.ordinal)
    }

    /// A workbench. The context must be current.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn bench(self: &Arc<Self>) -> Result<Work, Refusal> {
        let kept = self.benches.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bench = match kept {
            Some(bench) => bench,
            None => self.new_bench()?,
        };
        let device = Arc::clone(self);
        Ok(Work { device, bench: Some(bench), pieces: Vec::new(), granted: 0, end: 0, turn: 0 })
    }

    fn room(&self) -> u64 {
        // More than the GPU has: rounding of small allocations must not run out of addresses.
        (self.bytes + self.bytes / 8).next_multiple_of(BLOCK as u64)
    }

    fn new_bench(&self) -> Result<Bench, Refusal> {
        /// `CU_STREAM_NON_BLOCKING`.
        const NON_BLOCKING: u32 = 1;
        let on = self.name();
        let digest_bytes = self.room() as usize / BLOCK * size_of::<Digest>();
        let (mut window, mut digests, mut copied) = (0, 0, std::ptr::null_mut());
        let mut streams = [0; STREAMS];
        // SAFETY: every pointer is to a live local.
        unsafe {
            let reserved = cuda::cuMemAddressReserve(&raw mut window, self.room() as usize, 0, 0, 0);
            check("cuMemAddressReserve", &on, reserved)?;
            check("cuMemAlloc", &on, cuda::cuMemAlloc_v2(&raw mut digests, digest_bytes))?;
            check("cuMemHostAlloc", &on, cuda::cuMemHostAlloc(&raw mut copied, digest_bytes, 0))?;
            for stream in &mut streams {
                let mut made = std::ptr::null_mut();
                check("cuStreamCreate", &on, cuda::cuStreamCreate(&raw mut made, NON_BLOCKING))?;
                *stream = made as usize;
            }
        }
        Ok(Bench { window, streams, digests, copied_digests: copied as usize })
    }
}

impl Bench {
    /// Gives up what can be given up. What is still mapped in the window stays.
    fn scrap(self) {
        // SAFETY: all of it is the bench's own, and nobody has it any more. A driver that refuses keeps it.
        unsafe {
            self.streams.iter().for_each(|stream| {
                cuda::cuStreamDestroy_v2(*stream as Handle);
            });
            cuda::cuMemFree_v2(self.digests);
            cuda::cuMemFreeHost(self.copied_digests as Handle);
        }
    }
}

/// Whether the driver can back this GPU's memory with parts that can be taken away and handed on.
fn can_park(device: c_int, on: &str) -> Result<(), Refusal> {
    // CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, _HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED.
    for (attribute, what) in
        [(102, "virtual memory management"), (103, "memory handles that are descriptors")]
    {
        let mut value = 0;
        // SAFETY: the pointer is to a live local; a driver that does not know the attribute leaves zero.
        unsafe { cuda::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        if value == 0 {
            let text = format!(
                "the driver has no {what} here (old drivers, some virtual GPUs): nothing can be parked"
            );
            return Err(Refusal { on: on.to_owned(), name: "unsupported".to_owned(), ..invalid(&text) });
        }
    }
    Ok(())
}

/// Place of a device on the bus: domain, bus, slot.
fn bus(device: c_int) -> u32 {
    // CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID, _BUS_ID, _DEVICE_ID.
    [50, 33, 34].into_iter().fold(0, |place, attribute| {
        let mut value = 0;
        // SAFETY: the pointer is to a live local; a refusal leaves zero.
        unsafe { cuda::cuDeviceGetAttribute(&raw mut value, attribute, device) };
        place << 8 | value.cast_unsigned() & 0xff
    })
}

/// A chunk on a workbench.
#[derive(Debug, Clone, Copy)]
pub(super) struct Piece {
    /// The chunk's number.
    pub(super) number: u64,
    /// Its bytes.
    pub(super) bytes: u64,
    /// First block, counted from the window's beginning.
    pub(super) first: usize,
    handle: u64,
}

/// A workbench in use. What is on it is taken off when it is dropped.
#[derive(Debug)]
pub(super) struct Work {
    device: Arc<Device>,
    /// There until it is dropped.
    bench: Option<Bench>,
    pieces: Vec<Piece>,
    granted: u64,
    end: u64,
    turn: usize,
}

impl Work {
    /// Takes everything off the bench, in a thread of its own: whoever is waiting need not wait for that.
    pub(super) fn clear_away(self) {
        let clear = move || {
            // Without a context nothing can be taken off, and the bench is given up.
            let _ = self.device.enter();
            drop(self);
        };
        // Where no thread can be had the closure is dropped at once, and the bench with it.
        let _ = std::thread::Builder::new().name("clear away".to_owned()).spawn(clear);
    }

    fn bench(&self) -> &Bench {
        self.bench.as_ref().expect("a workbench in use has one until it is dropped")
    }

    fn address(&self, block: usize) -> u64 {
        self.bench().window + (block * BLOCK) as u64
    }

    fn stream(&self, at: usize) -> Handle {
        self.bench().streams[at % STREAMS] as Handle
    }

    /// The chunks on it, in order.
    pub(super) fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    /// Maps a chunk that came as a descriptor.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn adopt(&mut self, entry: &Entry, descriptor: &OwnedFd) -> Result<(), Refusal> {
        let on = format!("chunk {}", entry.number);
        let descriptor = descriptor.as_raw_fd() as usize as *mut c_void;
        let kind = cuda::POSIX_DESCRIPTOR;
        let mut handle = 0;
        // SAFETY: the descriptor is open, and a live local takes the handle.
        let imported = unsafe { cuda::cuMemImportFromShareableHandle(&raw mut handle, descriptor, kind) };
        check("cuMemImportFromShareableHandle", &on, imported)?;
        let address = self.bench().window + self.end;
        // SAFETY: a free part of the bench's own window; the driver checks that it is large enough.
        let mapped = unsafe { cuda::cuMemMap(address, entry.bytes as usize, 0, handle, 0) };
        if let Err(refusal) = check("cuMemMap", &on, mapped) {
            // SAFETY: imported just now and known to nobody.
            unsafe { cuda::cuMemRelease(handle) };
            return Err(refusal);
        }
        let first = self.end as usize / BLOCK;
        self.pieces.push(Piece { number: entry.number, bytes: entry.bytes, first, handle });
        self.end += entry.bytes;
        Ok(())
    }

    /// Makes what was adopted since the last call usable; the blocks it is.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn grant(&mut self) -> Result<std::ops::Range<usize>, Refusal> {
        let (from, to) = (self.granted, self.end);
        if from < to {
            let location = Location { kind: 1, id: self.device.ordinal };
            let access = Access { location, flags: cuda::READ_WRITE };
            let address = self.bench().window + from;
            // SAFETY: mapped without a gap by `adopt`; the descriptor is a live local.
            let granted =
                unsafe { cuda::cuMemSetAccess(address, (to - from) as usize, &raw const access, 1) };
            check("cuMemSetAccess", &self.device.name(), granted)?;
            self.granted = to;
        }
        Ok(from as usize / BLOCK..to as usize / BLOCK)
    }

    /// Begins to digest blocks.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn digest(&self, blocks: std::ops::Range<usize>) -> Result<(), Refusal> {
        if blocks.is_empty() {
            return Ok(());
        }
        let base = self.address(blocks.start);
        let out = self.bench().digests + (blocks.start * size_of::<Digest>()) as u64;
        let [low, high] = self.device.key;
        let mut parameters = [&raw const base, &raw const out, &raw const low, &raw const high]
            .map(|parameter| parameter.cast_mut().cast::<c_void>());
        // SAFETY: the kernel's four parameters; every block is mapped and its digest has room.
        let launched = unsafe {
            cuda::cuLaunchKernel(
                self.device.kernel as Handle,
                blocks.len() as u32,
                1,
                1,
                LANES as u32,
                1,
                1,
                0,
                self.stream(0),
                parameters.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        check("cuLaunchKernel", "the digest kernel", launched)
    }

    /// The digests of all blocks on the bench, once they are done.
    ///
    /// # Errors
    /// The driver's refusal, also that of the kernel.
    pub(super) fn digests(&self) -> Result<Vec<Digest>, Refusal> {
        let blocks = self.end as usize / BLOCK;
        let (bench, stream) = (self.bench(), self.stream(0));
        let host = bench.copied_digests as *mut Digest;
        // SAFETY: both buffers have room for the window's digests, and the stream is waited for before they are read.
        unsafe {
            let bytes = blocks * size_of::<Digest>();
            let copied = cuda::cuMemcpyDtoHAsync_v2(host.cast(), bench.digests, bytes, stream);
            check("cuMemcpyDtoHAsync", "digests", copied)?;
            check("cuStreamSynchronize", "digests", cuda::cuStreamSynchronize(stream))?;
            Ok(std::slice::from_raw_parts(host, blocks).to_vec())
        }
    }

    /// Begins a copy of blocks to pinned memory.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn copy_out(&mut self, block: usize, to: *mut c_void, blocks: usize) -> Result<(), Refusal> {
        let stream = self.next_stream();
        // SAFETY: the blocks are mapped; the caller's slots have room for them.
        let begun = unsafe { cuda::cuMemcpyDtoHAsync_v2(to, self.address(block), blocks * BLOCK, stream) };
        check("cuMemcpyDtoHAsync", "blocks", begun)
    }

    /// Begins a copy of blocks from pinned memory.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn copy_in(
        &mut self,
        block: usize,
        from: *const c_void,
        blocks: usize,
    ) -> Result<(), Refusal> {
        let stream = self.next_stream();
        // SAFETY: as in `copy_out`.
        let begun = unsafe { cuda::cuMemcpyHtoDAsync_v2(self.address(block), from, blocks * BLOCK, stream) };
        check("cuMemcpyHtoDAsync", "blocks", begun)
    }

    /// Begins to fill blocks with zeros.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn clear(&self, block: usize, blocks: usize) -> Result<(), Refusal> {
        // SAFETY: the blocks are mapped.
        let begun = unsafe { cuda::cuMemsetD8Async(self.address(block), 0, blocks * BLOCK, self.stream(0)) };
        check("cuMemsetD8Async", "blocks", begun)
    }

    fn next_stream(&mut self) -> Handle {
        self.turn += 1;
        self.stream(self.turn)
    }

    /// A mark behind everything begun so far.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn mark(&self) -> Result<Mark, Refusal> {
        /// `CU_EVENT_DISABLE_TIMING`.
        const NO_TIMING: u32 = 2;
        let mut mark = Mark([0; STREAMS]);
        for (at, event) in mark.0.iter_mut().enumerate() {
            let mut made = std::ptr::null_mut();
            // SAFETY: the pointer is to a live local; the stream is the bench's.
            unsafe {
                check("cuEventCreate", "a stream", cuda::cuEventCreate(&raw mut made, NO_TIMING))?;
                *event = made as usize;
                check("cuEventRecord", "a stream", cuda::cuEventRecord(made, self.stream(at)))?;
            }
        }
        Ok(mark)
    }

    /// Waits for everything begun.
    ///
    /// # Errors
    /// The driver's refusal, also that of a copy.
    pub(super) fn finish(&self) -> Result<(), Refusal> {
        (0..STREAMS).try_for_each(|at| {
            // SAFETY: the bench's own stream.
            check("cuStreamSynchronize", "copies", unsafe { cuda::cuStreamSynchronize(self.stream(at)) })
        })
    }

    /// Takes chunks off the bench: nothing of them is held any more. Nothing may be under way on them.
    ///
    /// # Errors
    /// The driver's refusal.
    pub(super) fn let_go(&mut self, numbers: &[u64]) -> Result<(), Refusal> {
        let numbers: BTreeSet<u64> = numbers.iter().copied().collect();
        let (mut outcome, mut kept) = (Ok(()), Vec::new());
        for piece in std::mem::take(&mut self.pieces) {
            if outcome.is_ok() && numbers.contains(&piece.number) {
                outcome = self.unmap(piece);
                if outcome.is_ok() {
                    continue;
                }
            }
            kept.push(piece);
        }
        self.pieces = kept;
        outcome
    }

    fn unmap(&self, piece: Piece) -> Result<(), Refusal> {
        let on = format!("chunk {}", piece.number);
        // SAFETY: mapped there by `adopt`, and the handle is its own.
        unsafe {
            let unmapped = cuda::cuMemUnmap(self.address(piece.first), piece.bytes as usize);
            check("cuMemUnmap", &on, unmapped)?;
            check("cuMemRelease", &on, cuda::cuMemRelease(piece.handle))
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // A bench whose streams or mappings are broken is not used again.
        let pieces = std::mem::take(&mut self.pieces);
        let mut clean = self.finish().is_ok();
        pieces.into_iter().for_each(|piece| clean &= self.unmap(piece).is_ok());
        let Some(bench) = self.bench.take() else { return };
        if clean {
            self.device.benches.lock().unwrap_or_else(PoisonError::into_inner).push(bench);
        } else {
            let device = self.device.name();
            eprintln!("gpu-server: a workbench on {device} is given up: memory may stay mapped on it");
            bench.scrap();
        }
    }
}

/// Events behind the work of each stream.
#[derive(Debug)]
pub(super) struct Mark([usize; STREAMS]);

impl Mark {
    /// Waits until the work before it is done.
    ///
    /// # Errors
    /// The driver's refusal, also that of the work.
    pub(super) fn wait(&self) -> Result<(), Refusal> {
        self.0.iter().try_for_each(|event| {
            // SAFETY: an event of this mark, which lives.
            check("cuEventSynchronize", "copies", unsafe { cuda::cuEventSynchronize(*event as Handle) })
        })
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        for event in self.0.iter().filter(|event| **event != 0) {
            // SAFETY: an event of this mark; the driver keeps what is still under way.
            unsafe { cuda::cuEventDestroy_v2(*event as Handle) };
        }
    }
}

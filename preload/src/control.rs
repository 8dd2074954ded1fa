//! The control thread: does what the memory server asks.
//!
//! ```text
//!            Close                Release        Restore, Filled             Open
//!  resident ──────▶ gate closed ──────────▶ away ────────────────▶ all here ──────▶ resident
//! ```
//!
//! If the server goes away, an engine with all its memory here goes on at once; one with memory away waits, asking
//! for a server at the same place until there is one.

use std::ffi::c_int;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::sync::Once;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::address::{self, Address};
use crate::driver::{self, Context, NOT_SUPPORTED, POSIX_DESCRIPTOR, SUCCESS};
use crate::gate;
use crate::memory;
use crate::pool;
use crate::process::{self, Own};
use crate::registry::{self, Chunk, called, failed_call};
use crate::virtual_memory::real;
use crate::wire::{self, BUSY, Entry, Kind, MOST_ENTRIES, Message, Place};

/// Between two attempts to find a memory server.
const RETRY: Duration = Duration::from_millis(200);
/// Bytes of a batch: small enough for the server to begin, large enough to be few.
const BATCH: u64 = 1 << 30;
/// `CUDA_ERROR_ILLEGAL_STATE`.
const ILLEGAL_STATE: c_int = 401;
/// `CUDA_ERROR_CONTEXT_IS_DESTROYED`, and `CUDA_ERROR_INVALID_CONTEXT`: nothing to wait for.
const CONTEXT_GONE: [c_int; 2] = [709, 201];

/// Starts the thread, once.
pub(crate) fn start() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        process::leave_children_alone();
        let Some(address) = address::named_by(process::SOCKET) else { return };
        // SAFETY: the sets are live locals; signals are the engine's business, so its threads get them all.
        unsafe {
            let (mut all, mut old) = (std::mem::zeroed(), std::mem::zeroed());
            libc::sigfillset(&raw mut all);
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut old);
            // Without the thread the engine runs, and is not parked: the server sees nobody.
            let _ =
                std::thread::Builder::new().name("swapserve-park".to_owned()).spawn(move || run(&address));
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const old, std::ptr::null_mut());
        }
    });
}

fn connect(address: &Address) -> Option<Own> {
    address::connect(address, libc::SOCK_SEQPACKET).map(Own::new)
}

fn run(address: &Address) {
    loop {
        if let Some(socket) = connect(address) {
            // A broken socket is the same as a closed one.
            let _ = serve(socket.as_fd());
        }
        let mut registry = registry::lock();
        registry.drop_unfilled();
        let all_here = registry.chunks().all(|(_, chunk)| chunk.filled);
        drop(registry);
        if all_here && gate::is_closed() {
            gate::open();
        }
        std::thread::sleep(RETRY);
    }
}

fn serve(socket: BorrowedFd) -> std::io::Result<()> {
    let mut hello = Message::new(Kind::Hello);
    hello.value = wire::VERSION;
    wire::send(socket, &hello, &[])?;
    while let Some((message, _)) = wire::receive(socket)? {
        failed_call();
        let numbers = message.entries.iter().map(|entry| entry.number);
        let outcome = match message.kind {
            Kind::Close => close(Duration::from_millis(message.value)),
            Kind::Open => open(),
            Kind::List => list(socket)?,
            Kind::Export => hand_out(socket, numbers, false)?,
            Kind::Restore => hand_out(socket, numbers, true)?,
            Kind::Release => release(numbers),
            Kind::Filled => filled(numbers),
            Kind::Hello | Kind::Batch | Kind::Done => Err(NOT_SUPPORTED),
        };
        let mut done = Message::new(Kind::Done);
        if let Err(code) = outcome {
            (done.code, done.value) = (code, failed_call());
        }
        done.counts = counts();
        wire::send(socket, &done, &[])?;
    }
    Ok(())
}

fn counts() -> [u64; wire::COUNTS] {
    let (mut here, mut away, mut shared) = (0, 0, 0);
    for (_, chunk) in registry::lock().chunks() {
        *match place(chunk) {
            Place::Here => &mut here,
            Place::Away => &mut away,
            Place::Shared => &mut shared,
        } += chunk.bytes as u64;
    }
    let [managed, refused, imported, pooled] = memory::in_the_way();
    [here, away, shared, managed, refused, imported, pooled]
}

fn place(chunk: &Chunk) -> Place {
    match chunk {
        Chunk { filled: false, .. } => Place::Away,
        Chunk { stays: true, .. } => Place::Shared,
        _ => Place::Here,
    }
}

fn entry(number: u64, chunk: &Chunk) -> Entry {
    Entry { number, bytes: chunk.bytes as u64, device: chunk.bus, place: place(chunk) }
}

/// Closes the gate and waits for the device.
fn close(limit: Duration) -> Result<(), c_int> {
    if gate::is_closed() {
        // A part is away already, and nothing has run since.
        return Ok(());
    }
    let deadline = Instant::now() + limit;
    if !gate::close(deadline) {
        return Err(BUSY);
    }
    let outcome = await_contexts(deadline);
    if outcome.is_err() {
        gate::open();
    } else {
        memory::free_later();
        pool::drop_idle();
    }
    outcome
}

/// Waits until every context has done its work. A wait that hangs is left to a thread of its own.
fn await_contexts(deadline: Instant) -> Result<(), c_int> {
    let contexts = registry::lock().contexts();
    let (tell, told) = mpsc::channel();
    let wait = move || {
        let first_failure = contexts.into_iter().map(await_context).find(|(_, code)| *code != SUCCESS);
        // If nobody listens any more, the deadline has passed.
        let _ = tell.send(first_failure.unwrap_or(("", SUCCESS)));
    };
    std::thread::Builder::new().name("swapserve-sync".to_owned()).spawn(wait).map_err(|_| BUSY)?;
    let left = deadline.saturating_duration_since(Instant::now());
    let (call, code) = told.recv_timeout(left).unwrap_or(("", BUSY));
    called(call, code)
}

fn await_context(context: usize) -> (&'static str, c_int) {
    // SAFETY: a context that was current in this process; the driver refuses one that is gone.
    let mut outcome = ("cuCtxSetCurrent", unsafe { driver::cuCtxSetCurrent(context as Context) });
    if outcome.1 == SUCCESS {
        // SAFETY: takes nothing.
        outcome = ("cuCtxSynchronize", unsafe { driver::cuCtxSynchronize() });
    }
    if CONTEXT_GONE.contains(&outcome.1) { ("", SUCCESS) } else { outcome }
}

fn open() -> Result<(), c_int> {
    if registry::lock().chunks().any(|(_, chunk)| !chunk.filled) {
        return Err(ILLEGAL_STATE);
    }
    gate::open();
    Ok(())
}

fn list(socket: BorrowedFd) -> std::io::Result<Result<(), c_int>> {
    let entries: Vec<_> = registry::lock().chunks().map(|(number, chunk)| entry(number, chunk)).collect();
    for part in entries.chunks(MOST_ENTRIES) {
        let mut batch = Message::new(Kind::Batch);
        batch.entries = part.to_vec();
        wire::send(socket, &batch, &[])?;
    }
    Ok(Ok(()))
}

/// Sends chunks' descriptors, batch by batch; with `restore`, of memory made for the purpose. Chunks that the engine
/// has freed meanwhile are left out; at the first refusal of the driver what is ready is sent.
fn hand_out(
    socket: BorrowedFd,
    numbers: impl Iterator<Item = u64>,
    restore: bool,
) -> std::io::Result<Result<(), c_int>> {
    let mut batch = Message::new(Kind::Batch);
    let mut descriptors = Vec::new();
    let mut outcome = Ok(());
    for number in numbers {
        match descriptor(number, restore) {
            Ok(Some((entry, descriptor))) => {
                batch.entries.push(entry);
                descriptors.push(descriptor);
            }
            Ok(None) => {}
            Err(code) => {
                outcome = Err(code);
                break;
            }
        }
        let bytes: u64 = batch.entries.iter().map(|entry| entry.bytes).sum();
        if descriptors.len() == wire::MOST_DESCRIPTORS || bytes >= BATCH {
            flush(socket, &mut batch, &mut descriptors)?;
        }
    }
    flush(socket, &mut batch, &mut descriptors)?;
    Ok(outcome)
}

fn flush(socket: BorrowedFd, batch: &mut Message, descriptors: &mut Vec<Own>) -> std::io::Result<()> {
    if !descriptors.is_empty() {
        let numbers: Vec<_> = descriptors.iter().map(Own::number).collect();
        wire::send(socket, batch, &numbers)?;
        batch.entries.clear();
        descriptors.clear();
    }
    Ok(())
}

/// A chunk's descriptor; nothing if it is gone, shared, or (unless to be restored) away.
fn descriptor(number: u64, restore: bool) -> Result<Option<(Entry, Own)>, c_int> {
    let mut registry = registry::lock();
    if restore {
        registry.bring_back(number)?;
    }
    let Some(chunk) = registry.chunk(number).filter(|chunk| !chunk.stays) else { return Ok(None) };
    let Some(handle) = chunk.real else { return Ok(None) };
    let mut descriptor: c_int = -1;
    // SAFETY: the registry's own handle, and room for a descriptor.
    called("cuMemExportToShareableHandle", unsafe {
        real::cuMemExportToShareableHandle((&raw mut descriptor).cast(), handle, POSIX_DESCRIPTOR, 0)
    })?;
    // SAFETY: the driver has just opened it for this process.
    let descriptor = Own::new(unsafe { OwnedFd::from_raw_fd(descriptor) });
    Ok(Some((entry(number, chunk), descriptor)))
}

fn release(mut numbers: impl Iterator<Item = u64>) -> Result<(), c_int> {
    if !gate::is_closed() {
        return Err(ILLEGAL_STATE);
    }
    let mut registry = registry::lock();
    numbers.try_for_each(|number| match registry.chunk(number) {
        Some(chunk) if chunk.stays => Err(NOT_SUPPORTED),
        _ => registry.take_away(number),
    })
}

/// What chunks held has been copied back.
fn filled(mut numbers: impl Iterator<Item = u64>) -> Result<(), c_int> {
    let mut registry = registry::lock();
    numbers.try_for_each(|number| match registry.chunk(number) {
        Some(chunk) if chunk.real.is_none() => Err(ILLEGAL_STATE),
        Some(chunk) => {
            chunk.filled = true;
            Ok(())
        }
        None => Ok(()),
    })
}

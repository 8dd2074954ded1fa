//! `/do`: one step at a time, as a test asks; mostly one driver call. Addresses and handles go back and forth as numbers.
//! A step with an `on` that is not 0 is done with that GPU current.

use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use serde_json::{Value, json};

use crate::captures;
use crate::cuda::{Access, AllocationProperties, Cuda, Location};
use crate::cuda_call;
use crate::hammer::Hammer;
use crate::pools;
use crate::versions::{self, By};

/// `CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR`.
const POSIX_DESCRIPTOR: i32 = 1;
const DEVICE: Location = Location { kind: 1, id: 0 };
const NULL: *mut c_void = std::ptr::null_mut();

/// What kernels that are to be told wait for.
static TOLD: AtomicU64 = AtomicU64::new(0);

/// What steps leave behind.
#[derive(Debug, Default)]
pub struct Script {
    hammer: Mutex<Option<Hammer>>,
    exported: Mutex<Vec<OwnedFd>>,
}

impl Script {
    /// Does a step; its result.
    pub fn step(&self, cuda: &Cuda, step: &Value) -> Result<Value, String> {
        match step["on"].as_u64() {
            None | Some(0) => self.step_here(cuda, step),
            Some(gpu) => {
                cuda.use_device(gpu as i32)?;
                let outcome = self.step_here(cuda, step);
                cuda.use_device(0)?;
                outcome
            }
        }
    }

    fn step_here(&self, cuda: &Cuda, step: &Value) -> Result<Value, String> {
        let number = |key: &str| step[key].as_u64().unwrap_or(0);
        let (address, bytes, handle) = (number("address"), number("bytes") as usize, number("handle"));
        match step["do"].as_str().unwrap_or_default() {
            "alloc" => allocate(cuda, step),
            "free" => cuda_call!(cuda, cuMemFree_v2(address)).map(|()| Value::Null),
            "free-async" => {
                let stream = number("stream") as *mut c_void;
                cuda_call!(cuda, cuMemFreeAsync(address, stream)).map(|()| Value::Null)
            }
            "write" => {
                let pattern = pattern(number("seed"), bytes);
                cuda_call!(cuda, cuMemcpyHtoD_v2(address, pattern.as_ptr().cast(), bytes))
                    .map(|()| Value::Null)
            }
            "zero" => cuda_call!(cuda, cuMemsetD8_v2(address, 0, bytes)).map(|()| Value::Null),
            "flip" => {
                let mut byte = 0u8;
                cuda_call!(cuda, cuMemcpyDtoH_v2((&raw mut byte).cast(), address, 1))?;
                byte ^= number("mask") as u8;
                cuda_call!(cuda, cuMemcpyHtoD_v2(address, (&raw const byte).cast(), 1)).map(|()| Value::Null)
            }
            "copy" => cuda_call!(cuda, cuMemcpyDtoD_v2(number("to"), address, bytes)).map(|()| Value::Null),
            "hash" => {
                let mut read = vec![0u8; bytes];
                cuda_call!(cuda, cuMemcpyDtoH_v2(read.as_mut_ptr().cast(), address, bytes))?;
                Ok(json!({"hash": hash(&read)}))
            }
            "digest" => digest(cuda, address, number("blocks"), [number("low"), number("high")]),
            "add" => add_one(cuda, address, number("words"), NULL).map(|()| Value::Null),
            "stream" => {
                let mut stream = NULL;
                cuda_call!(cuda, cuStreamCreate(&raw mut stream, 1))?;
                Ok(json!({"stream": stream as u64}))
            }
            "add-when-told" => {
                TOLD.store(0, Ordering::Release);
                add_when_told(cuda, address, number("words"), number("stream") as *mut c_void)
                    .map(|()| Value::Null)
            }
            "tell" => {
                TOLD.store(1, Ordering::Release);
                Ok(Value::Null)
            }
            "synchronize" => {
                cuda_call!(cuda, cuStreamSynchronize(number("stream") as *mut c_void)).map(|()| Value::Null)
            }
            "capture" | "end-capture" | "destroy-stream" | "instantiate" => captures::step(cuda, step),
            "launch" => {
                cuda_call!(cuda, cuGraphLaunch(number("graph") as *mut c_void, NULL))?;
                cuda_call!(cuda, cuCtxSynchronize()).map(|()| Value::Null)
            }
            "info" => {
                let (mut free, mut total) = (0, 0);
                cuda_call!(cuda, cuMemGetInfo_v2(&raw mut free, &raw mut total))?;
                Ok(json!({"free": free, "total": total}))
            }
            "range" => {
                let (mut base, mut length) = (0, 0);
                cuda_call!(cuda, cuMemGetAddressRange_v2(&raw mut base, &raw mut length, address))?;
                Ok(json!({"address": base, "bytes": length}))
            }
            "create" => {
                let (properties, mut handle) = (properties(number("types") as i32), 0);
                cuda_call!(cuda, cuMemCreate(&raw mut handle, bytes, &raw const properties, 0))?;
                Ok(json!({"handle": handle}))
            }
            "release" => cuda_call!(cuda, cuMemRelease(handle)).map(|()| Value::Null),
            "reserve" => {
                let mut address = 0;
                cuda_call!(cuda, cuMemAddressReserve(&raw mut address, bytes, 0, 0, 0))?;
                Ok(json!({"address": address}))
            }
            "map" => cuda_call!(cuda, cuMemMap(address, bytes, 0, handle, 0)).map(|()| Value::Null),
            "access" => {
                let access = Access { location: DEVICE, flags: 3 };
                cuda_call!(cuda, cuMemSetAccess(address, bytes, &raw const access, 1)).map(|()| Value::Null)
            }
            "unmap" => cuda_call!(cuda, cuMemUnmap(address, bytes)).map(|()| Value::Null),
            "unreserve" => cuda_call!(cuda, cuMemAddressFree(address, bytes)).map(|()| Value::Null),
            "retain" => {
                let mut handle = 0;
                cuda_call!(cuda, cuMemRetainAllocationHandle(&raw mut handle, address as *mut c_void))?;
                Ok(json!({"handle": handle}))
            }
            "types" => {
                let mut found = properties(-1);
                cuda_call!(cuda, cuMemGetAllocationPropertiesFromHandle(&raw mut found, handle))?;
                Ok(json!({"types": found.handle_types}))
            }
            "export" => {
                let mut descriptor = -1;
                cuda_call!(
                    cuda,
                    cuMemExportToShareableHandle(&raw mut descriptor, handle, POSIX_DESCRIPTOR, 0)
                )?;
                // SAFETY: the driver has just opened it for this process.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                self.exported.lock().unwrap_or_else(PoisonError::into_inner).push(descriptor);
                Ok(Value::Null)
            }
            "peer" => {
                // GPU 1 is to reach GPU 0's memory.
                let mut context = NULL;
                cuda_call!(cuda, cuDevicePrimaryCtxRetain(&raw mut context, 0))?;
                cuda.use_device(1)?;
                let reached = cuda_call!(cuda, cuCtxEnablePeerAccess(context, 0));
                cuda.use_device(0)?;
                reached.map(|()| Value::Null)
            }
            "reach" => {
                let (mut flags, location) = (0, Location { kind: 1, id: number("gpu") as i32 });
                cuda_call!(cuda, cuMemGetAccess(&raw mut flags, &raw const location, address))?;
                Ok(json!({"flags": flags}))
            }
            "dma-buf" => {
                /// `CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD`.
                const DMA_BUF: i32 = 1;
                let mut descriptor = -1;
                cuda_call!(
                    cuda,
                    cuMemGetHandleForAddressRange(&raw mut descriptor, address, bytes, DMA_BUF, 0)
                )?;
                // SAFETY: the driver has just opened it for this process.
                let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
                self.exported.lock().unwrap_or_else(PoisonError::into_inner).push(descriptor);
                Ok(Value::Null)
            }
            "ipc" => {
                let mut handle = [0u8; 64];
                cuda_call!(cuda, cuIpcGetMemHandle(&raw mut handle, address)).map(|()| Value::Null)
            }
            "pool" | "default-pool" | "current-pool" | "set-pool" | "destroy-pool" | "threshold"
            | "pool-access" | "trim" => pools::step(cuda, step),
            "look-up" => {
                versions::look_up(step["name"].as_str().unwrap_or_default(), number("version") as i32)
            }
            "bind" => {
                let by = if handle > 0 { By::Handle(handle) } else { By::Address(address) };
                versions::bind(cuda, by, bytes, number("version") as i32).map(|()| Value::Null)
            }
            "fork" => fork(cuda),
            "run" => run(step["program"].as_str().unwrap_or("true")),
            "hammer" => {
                let hammer = Hammer::start(number("threads") as usize)?;
                *self.hammer.lock().unwrap_or_else(PoisonError::into_inner) = Some(hammer);
                Ok(Value::Null)
            }
            "hammer-rounds" | "hammer-stop" => {
                let mut hammer = self.hammer.lock().unwrap_or_else(PoisonError::into_inner);
                let Some(running) = hammer.as_ref() else { return Err("no hammer".to_owned()) };
                if step["do"] == "hammer-rounds" {
                    return running.rounds().map(|rounds| json!({"rounds": rounds}));
                }
                hammer.take().map_or(Ok(0), Hammer::stop).map(|rounds| json!({"rounds": rounds}))
            }
            other => Err(format!("no step {other:?}")),
        }
    }
}

fn properties(handle_types: i32) -> AllocationProperties {
    AllocationProperties { kind: 1, handle_types, location: DEVICE, win32: NULL, flags: [0; 8] }
}

fn allocate(cuda: &Cuda, step: &Value) -> Result<Value, String> {
    let number = |key: &str| step[key].as_u64().unwrap_or(0) as usize;
    let (mut address, mut pitch) = (0, 0);
    let (out, bytes) = (&raw mut address, number("bytes"));
    match step["kind"].as_str().unwrap_or("plain") {
        "plain" => cuda_call!(cuda, cuMemAlloc_v2(out, bytes)),
        "pitch" => {
            cuda_call!(cuda, cuMemAllocPitch_v2(out, &raw mut pitch, number("width"), number("height"), 4))
        }
        "managed" => cuda_call!(cuda, cuMemAllocManaged(out, bytes, 1)),
        "async" => cuda_call!(cuda, cuMemAllocAsync(out, bytes, number("stream") as *mut c_void)),
        "pool" => cuda_call!(cuda, cuMemAllocFromPoolAsync(out, bytes, number("pool") as *mut c_void, NULL)),
        other => Err(format!("no kind {other:?}")),
    }?;
    Ok(json!({"address": address, "pitch": pitch}))
}

/// The kernel that adds one to each word; the software driver knows it by its name.
const ADD_ONE: &std::ffi::CStr = c".version 6.5
.target sm_75
.address_size 64
.visible .entry add_one(.param .u64 words, .param .u64 count)
{
    .reg .pred %end;
    .reg .b32 %block, %size, %thread, %all, %word;
    .reg .b64 %base, %number, %at, %step, %place;
    ld.param.u64 %base, [words];
    ld.param.u64 %number, [count];
    cvta.to.global.u64 %base, %base;
    mov.u32 %block, %ctaid.x;
    mov.u32 %size, %ntid.x;
    mov.u32 %thread, %tid.x;
    mad.lo.u32 %thread, %block, %size, %thread;
    cvt.u64.u32 %at, %thread;
    mov.u32 %all, %nctaid.x;
    mul.lo.u32 %all, %all, %size;
    cvt.u64.u32 %step, %all;
NEXT:
    setp.ge.u64 %end, %at, %number;
    @%end bra DONE;
    shl.b64 %place, %at, 2;
    add.u64 %place, %base, %place;
    ld.global.u32 %word, [%place];
    add.u32 %word, %word, 1;
    st.global.u32 [%place], %word;
    add.u64 %at, %at, %step;
    bra NEXT;
DONE:
    ret;
}
";

/// The memory server's kernel.
const DIGEST: &str = concat!(include_str!("../../../src/gpu/digest/digest.ptx"), "\0");

/// The memory server's digests of blocks of 2 MiB.
fn digest(cuda: &Cuda, address: u64, blocks: u64, [low, high]: [u64; 2]) -> Result<Value, String> {
    let (mut module, mut function, mut out) = (NULL, NULL, 0u64);
    cuda_call!(cuda, cuModuleLoadData(&raw mut module, DIGEST.as_ptr().cast()))?;
    cuda_call!(cuda, cuModuleGetFunction(&raw mut function, module, c"swapserve_digest".as_ptr()))?;
    let mut digests = vec![[0u64; 2]; blocks as usize];
    cuda_call!(cuda, cuMemAlloc_v2(&raw mut out, size_of_val(digests.as_slice())))?;
    let mut parameters = [&raw const address, &raw const out, &raw const low, &raw const high]
        .map(|it| it.cast_mut().cast::<c_void>());
    cuda_call!(
        cuda,
        cuLaunchKernel(
            function,
            blocks as u32,
            1,
            1,
            256,
            1,
            1,
            0,
            NULL,
            parameters.as_mut_ptr(),
            std::ptr::null_mut()
        )
    )?;
    let bytes = size_of_val(digests.as_slice());
    cuda_call!(cuda, cuMemcpyDtoH_v2(digests.as_mut_ptr().cast(), out, bytes))?;
    cuda_call!(cuda, cuMemFree_v2(out))?;
    Ok(json!({"digests": digests}))
}

/// The kernel that adds one, loaded once.
pub fn kernel(cuda: &Cuda) -> Result<*mut c_void, String> {
    static KERNEL: OnceLock<Result<usize, String>> = OnceLock::new();
    let load = || {
        let (mut module, mut function) = (NULL, NULL);
        cuda_call!(cuda, cuModuleLoadData(&raw mut module, ADD_ONE.as_ptr().cast()))?;
        cuda_call!(cuda, cuModuleGetFunction(&raw mut function, module, c"add_one".as_ptr()))?;
        Ok(function as usize)
    };
    KERNEL.get_or_init(load).clone().map(|function| function as *mut c_void)
}

/// Adds one to each of so many 32-bit words.
pub fn add_one(cuda: &Cuda, address: u64, words: u64, stream: *mut c_void) -> Result<(), String> {
    let mut parameters = [&raw const address, &raw const words].map(|it| it.cast_mut().cast::<c_void>());
    let function = kernel(cuda)?;
    cuda_call!(
        cuda,
        cuLaunchKernel(
            function,
            64,
            1,
            1,
            256,
            1,
            1,
            0,
            stream,
            parameters.as_mut_ptr(),
            std::ptr::null_mut()
        )
    )
}

/// The same once the program says so: a kernel that only the software driver has.
fn add_when_told(cuda: &Cuda, address: u64, words: u64, stream: *mut c_void) -> Result<(), String> {
    let (mut module, mut function) = (NULL, NULL);
    cuda_call!(cuda, cuModuleLoadData(&raw mut module, ADD_ONE.as_ptr().cast()))?;
    cuda_call!(cuda, cuModuleGetFunction(&raw mut function, module, c"add_when_told".as_ptr()))?;
    let told = std::ptr::from_ref(&TOLD) as u64;
    let mut parameters =
        [&raw const address, &raw const words, &raw const told].map(|it| it.cast_mut().cast::<c_void>());
    let (parameters, extra) = (parameters.as_mut_ptr(), std::ptr::null_mut());
    cuda_call!(cuda, cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, parameters, extra))
}

/// The bytes that a seed stands for; tests have the same function.
fn pattern(seed: u64, bytes: usize) -> Vec<u8> {
    (0..bytes.div_ceil(8) as u64)
        .flat_map(|at| mixed(seed ^ at.wrapping_mul(0x9e37_79b9)).to_le_bytes())
        .take(bytes)
        .collect()
}

/// What bytes come to; tests have the same function.
fn hash(bytes: &[u8]) -> u64 {
    bytes.chunks(8).fold(bytes.len() as u64, |hash, part| {
        let mut word = [0; 8];
        word[..part.len()].copy_from_slice(part);
        mixed(hash ^ u64::from_le_bytes(word))
    })
}

fn mixed(word: u64) -> u64 {
    let word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd).wrapping_add(1);
    word ^ (word >> 29)
}

/// Whether a descriptor is a connection to the memory server, which has an abstract name. The driver has sockets of the same
/// kind, `@cuda-uvmfd-…`, and leaves them to children.
fn leads_to_memory_server(descriptor: i32) -> bool {
    // SAFETY: all zeros is a valid address.
    let mut peer: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    let mut length = size_of_val(&peer) as libc::socklen_t;
    // SAFETY: any number; a live local of the length given.
    let asked = unsafe { libc::getpeername(descriptor, (&raw mut peer).cast(), &raw mut length) };
    let name = peer.sun_path.map(libc::c_char::cast_unsigned);
    asked == 0
        && peer.sun_family == libc::AF_UNIX as libc::sa_family_t
        && name.starts_with(b"\0swapserve-park-")
}

/// Forks a child that calls the driver and looks at what it has been left; what it saw.
fn fork(cuda: &Cuda) -> Result<Value, String> {
    // SAFETY: the child calls the driver, the kernel and the allocator (which the C library makes whole after a fork),
    // and ends without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let (mut address, mut status) = (0, 0);
        // CUDA cannot be used here: the driver says so, and nothing waits.
        if cuda_call!(cuda, cuMemAlloc_v2(&raw mut address, 8 << 20)).is_ok() {
            status |= 1;
        }
        if (0..1024).any(leads_to_memory_server) {
            status |= 2;
        }
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(status) };
    }
    let mut status = 0;
    // SAFETY: a child of this process and a live local.
    if child < 0 || unsafe { libc::waitpid(child, &raw mut status, 0) } != child {
        return Err(std::io::Error::last_os_error().to_string());
    }
    Ok(json!({"status": libc::WEXITSTATUS(status), "signal": libc::WTERMSIG(status)}))
}

/// Runs another program, which inherits the environment.
fn run(program: &str) -> Result<Value, String> {
    let status = std::process::Command::new(program).status().map_err(|error| error.to_string())?;
    Ok(json!({"ok": status.success()}))
}

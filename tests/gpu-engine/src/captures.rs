//! Steps about stream captures.

use std::ffi::{c_char, c_int, c_uint, c_void};

use serde_json::{Value, json};

use crate::cuda::Cuda;
use crate::cuda_call;
use crate::script::{add_one, kernel};
use crate::versions::found;

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_int = 2;
const NULL: *mut c_void = std::ptr::null_mut();

/// Does a step; its result.
pub fn step(cuda: &Cuda, step: &Value) -> Result<Value, String> {
    let number = |key: &str| step[key].as_u64().unwrap_or(0);
    let stream = number("stream") as *mut c_void;
    match step["do"].as_str().unwrap_or_default() {
        "capture" => {
            let mut stream = NULL;
            cuda_call!(cuda, cuStreamCreate(&raw mut stream, 1))?;
            kernel(cuda)?;
            match number("version") as c_int {
                _ if step["into"] == true => begin_into(cuda, stream)?,
                0 => cuda_call!(cuda, cuStreamBeginCapture_v2(stream, RELAXED))?,
                version => begin(cuda, stream, version)?,
            }
            add_one(cuda, number("address"), number("words"), stream)?;
            Ok(json!({"stream": stream as u64}))
        }
        "end-capture" => {
            let (mut graph, mut ready) = (NULL, NULL);
            cuda_call!(cuda, cuStreamEndCapture(stream, &raw mut graph))?;
            if step["instantiate"] == false {
                return Ok(json!({"graph": graph as u64}));
            }
            cuda_call!(cuda, cuGraphInstantiateWithFlags(&raw mut ready, graph, 0))?;
            Ok(json!({"graph": ready as u64}))
        }
        "instantiate" => {
            let (graph, version) = (number("graph") as *mut c_void, number("version") as c_int);
            Ok(json!({"graph": instantiate(cuda, graph, version)? as u64}))
        }
        "destroy-stream" => cuda_call!(cuda, cuStreamDestroy_v2(stream)).map(|()| Value::Null),
        other => Err(format!("no step {other:?}")),
    }
}

/// Begins a capture as a program of that version of CUDA does.
fn begin(cuda: &Cuda, stream: *mut c_void, version: c_int) -> Result<(), String> {
    type First = unsafe extern "C" fn(*mut c_void) -> c_int;
    type Second = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
    /// The version that has told the mode from then on.
    const WITH_MODE: c_int = 10010;
    let name = "cuStreamBeginCapture";
    let begin = found(name, version)?;
    // SAFETY: the function of that name has this signature for a program of that version.
    let code = unsafe {
        if version < WITH_MODE {
            std::mem::transmute::<*const c_void, First>(begin)(stream)
        } else {
            std::mem::transmute::<*const c_void, Second>(begin)(stream, RELAXED)
        }
    };
    cuda.check(name, code)
}

/// Begins a capture into a new graph.
fn begin_into(cuda: &Cuda, stream: *mut c_void) -> Result<(), String> {
    type Create = unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int;
    type Begin =
        unsafe extern "C" fn(*mut c_void, *mut c_void, *const c_void, *const c_void, usize, c_int) -> c_int;
    /// The version that has this from then on.
    const WITH_GRAPH: c_int = 12030;
    let name = "cuStreamBeginCaptureToGraph";
    let (create, begin) = (found("cuGraphCreate", WITH_GRAPH)?, found(name, WITH_GRAPH)?);
    let (mut graph, null) = (NULL, std::ptr::null());
    // SAFETY: functions of these names have these signatures; the pointer is to a live local.
    let code = unsafe {
        let create = std::mem::transmute::<*const c_void, Create>(create);
        cuda.check("cuGraphCreate", create(&raw mut graph, 0))?;
        std::mem::transmute::<*const c_void, Begin>(begin)(stream, graph, null, null, 0, RELAXED)
    };
    cuda.check(name, code)
}

/// Makes a graph ready as a program of that version of CUDA does.
fn instantiate(cuda: &Cuda, graph: *mut c_void, version: c_int) -> Result<*mut c_void, String> {
    type WithLog =
        unsafe extern "C" fn(*mut *mut c_void, *mut c_void, *mut *mut c_void, *mut c_char, usize) -> c_int;
    type WithFlags = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, u64) -> c_int;
    /// The version that takes flags in the place of a log from then on.
    const FLAGS: c_int = 12000;
    let name = "cuGraphInstantiate";
    let function = found(name, version)?;
    let (mut ready, mut failed, mut text) = (NULL, NULL, [0; 64]);
    // SAFETY: the function of that name has this signature for a program of that version; pointers are to live locals.
    let code = unsafe {
        if version < FLAGS {
            let instantiate = std::mem::transmute::<*const c_void, WithLog>(function);
            instantiate(&raw mut ready, graph, &raw mut failed, text.as_mut_ptr(), text.len())
        } else {
            std::mem::transmute::<*const c_void, WithFlags>(function)(&raw mut ready, graph, 0)
        }
    };
    cuda.check(name, code)?;
    Ok(ready)
}

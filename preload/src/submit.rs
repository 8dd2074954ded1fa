//! Functions that only pass the gate: launches, graphs, copies, fills, and questions about memory that may be away.
//!
//! Names that end in `_ptsz` and `_ptds` are the same functions for programs built with a default stream per thread.

use std::ffi::{c_int, c_uint, c_ushort, c_void};

use crate::driver::Handle;
use crate::gate;
use crate::hook::hooks;
use crate::process;

/// A pointer that is passed on unseen.
type Any = *mut c_void;

/// Declares functions that pass the gate and go on to the driver.
macro_rules! gated {
    ($($($name:ident)|+ ($($argument:ident: $kind:ty),* $(,)?);)*) => {
        gated! { @flat [] $($($name)|+ ($($argument: $kind),*);)* }
    };
    (@flat [$($done:tt)*] $name:ident | $($more:ident)|+ ($($argument:ident: $kind:ty),*); $($rest:tt)*) => {
        gated! { @flat [$($done)* $name($($argument: $kind),*);] $($more)|+ ($($argument: $kind),*); $($rest)* }
    };
    (@flat [$($done:tt)*] $name:ident ($($argument:ident: $kind:ty),*); $($rest:tt)*) => {
        gated! { @flat [$($done)* $name($($argument: $kind),*);] $($rest)* }
    };
    (@flat [$($name:ident($($argument:ident: $kind:ty),*);)*]) => {
        hooks! {
            $(fn $name($($argument: $kind),*) {
                let _inside = process::enabled().then(gate::pass);
                // SAFETY: the caller's own arguments.
                unsafe { real::$name($($argument),*) }
            })*
        }
    };
}

gated! {
    cuLaunchKernel | cuLaunchKernel_ptsz(
        function: Any, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, parameters: Any, extra: Any,
    );
    cuLaunchKernelEx | cuLaunchKernelEx_ptsz(settings: Any, function: Any, parameters: Any, extra: Any);
    cuLaunchCooperativeKernel | cuLaunchCooperativeKernel_ptsz(
        function: Any, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: Handle, parameters: Any,
    );
    cuGraphLaunch | cuGraphLaunch_ptsz(graph: Any, stream: Handle);
    cuGraphUpload | cuGraphUpload_ptsz(graph: Any, stream: Handle);
    cuGraphInstantiate | cuGraphInstantiate_v2(out: Any, graph: Any, failed: Any, text: Any, room: usize);
    cuGraphInstantiateWithFlags(out: Any, graph: Any, flags: u64);
    cuGraphInstantiateWithParams | cuGraphInstantiateWithParams_ptsz(out: Any, graph: Any, parameters: Any);

    cuMemcpy | cuMemcpy_ptds(to: u64, from: u64, bytes: usize);
    cuMemcpyPeer | cuMemcpyPeer_ptds(to: u64, to_context: Any, from: u64, from_context: Any, bytes: usize);
    cuMemcpyHtoD_v2 | cuMemcpyHtoD_v2_ptds(to: u64, from: Any, bytes: usize);
    cuMemcpyDtoH_v2 | cuMemcpyDtoH_v2_ptds(to: Any, from: u64, bytes: usize);
    cuMemcpyDtoD_v2 | cuMemcpyDtoD_v2_ptds(to: u64, from: u64, bytes: usize);
    cuMemcpy2D_v2 | cuMemcpy2D_v2_ptds | cuMemcpy2DUnaligned_v2 | cuMemcpy2DUnaligned_v2_ptds(copy: Any);
    cuMemcpy3D_v2 | cuMemcpy3D_v2_ptds(copy: Any);
    cuMemcpyAsync | cuMemcpyAsync_ptsz(to: u64, from: u64, bytes: usize, stream: Handle);
    cuMemcpyPeerAsync | cuMemcpyPeerAsync_ptsz(
        to: u64, to_context: Any, from: u64, from_context: Any, bytes: usize, stream: Handle,
    );
    cuMemcpyHtoDAsync_v2 | cuMemcpyHtoDAsync_v2_ptsz(to: u64, from: Any, bytes: usize, stream: Handle);
    cuMemcpyDtoHAsync_v2 | cuMemcpyDtoHAsync_v2_ptsz(to: Any, from: u64, bytes: usize, stream: Handle);
    cuMemcpyDtoDAsync_v2 | cuMemcpyDtoDAsync_v2_ptsz(to: u64, from: u64, bytes: usize, stream: Handle);
    cuMemcpy3DPeer | cuMemcpy3DPeer_ptds(copy: Any);
    cuMemcpyDtoA_v2 | cuMemcpyDtoA_v2_ptds(to: Any, at: usize, from: u64, bytes: usize);
    cuMemcpyAtoD_v2 | cuMemcpyAtoD_v2_ptds(to: u64, from: Any, at: usize, bytes: usize);
    cuMemcpy3DPeerAsync | cuMemcpy3DPeerAsync_ptsz(copy: Any, stream: Handle);
    cuMemcpyBatchAsync | cuMemcpyBatchAsync_ptsz(
        to: Any, from: Any, bytes: Any, count: usize, attributes: Any, which: Any, kinds: usize, failed: Any,
        stream: Handle,
    );
    cuMemcpyBatchAsync_v2 | cuMemcpyBatchAsync_v2_ptsz(
        to: Any, from: Any, bytes: Any, count: usize, attributes: Any, which: Any, kinds: usize, stream: Handle,
    );
    cuMemcpy3DBatchAsync | cuMemcpy3DBatchAsync_ptsz(
        count: usize, copies: Any, failed: Any, flags: u64, stream: Handle,
    );
    cuMemcpy3DBatchAsync_v2 | cuMemcpy3DBatchAsync_v2_ptsz(count: usize, copies: Any, flags: u64, stream: Handle);
    cuMemcpyWithAttributesAsync | cuMemcpyWithAttributesAsync_ptsz(
        to: u64, from: u64, bytes: usize, attributes: Any, stream: Handle,
    );
    cuMemcpy3DWithAttributesAsync | cuMemcpy3DWithAttributesAsync_ptsz(copy: Any, flags: u64, stream: Handle);
    cuMemcpy2DAsync_v2 | cuMemcpy2DAsync_v2_ptsz | cuMemcpy3DAsync_v2 | cuMemcpy3DAsync_v2_ptsz(
        copy: Any, stream: Handle,
    );

    cuMemsetD8_v2 | cuMemsetD8_v2_ptds(to: u64, value: u8, count: usize);
    cuMemsetD16_v2 | cuMemsetD16_v2_ptds(to: u64, value: c_ushort, count: usize);
    cuMemsetD32_v2 | cuMemsetD32_v2_ptds(to: u64, value: c_uint, count: usize);
    cuMemsetD2D8_v2 | cuMemsetD2D8_v2_ptds(to: u64, pitch: usize, value: u8, width: usize, height: usize);
    cuMemsetD2D16_v2 | cuMemsetD2D16_v2_ptds(to: u64, pitch: usize, value: c_ushort, width: usize, height: usize);
    cuMemsetD2D32_v2 | cuMemsetD2D32_v2_ptds(to: u64, pitch: usize, value: c_uint, width: usize, height: usize);
    cuMemsetD8Async | cuMemsetD8Async_ptsz(to: u64, value: u8, count: usize, stream: Handle);
    cuMemsetD16Async | cuMemsetD16Async_ptsz(to: u64, value: c_ushort, count: usize, stream: Handle);
    cuMemsetD32Async | cuMemsetD32Async_ptsz(to: u64, value: c_uint, count: usize, stream: Handle);
    cuMemsetD2D8Async | cuMemsetD2D8Async_ptsz(
        to: u64, pitch: usize, value: u8, width: usize, height: usize, stream: Handle,
    );
    cuMemsetD2D16Async | cuMemsetD2D16Async_ptsz(
        to: u64, pitch: usize, value: c_ushort, width: usize, height: usize, stream: Handle,
    );
    cuMemsetD2D32Async | cuMemsetD2D32Async_ptsz(
        to: u64, pitch: usize, value: c_uint, width: usize, height: usize, stream: Handle,
    );

    cuStreamWaitValue32_v2 | cuStreamWaitValue32_v2_ptsz | cuStreamWriteValue32_v2 | cuStreamWriteValue32_v2_ptsz(
        stream: Handle, address: u64, value: c_uint, flags: c_uint,
    );
    cuStreamWaitValue64_v2 | cuStreamWaitValue64_v2_ptsz | cuStreamWriteValue64_v2 | cuStreamWriteValue64_v2_ptsz(
        stream: Handle, address: u64, value: u64, flags: c_uint,
    );
    cuStreamBatchMemOp_v2 | cuStreamBatchMemOp_v2_ptsz(stream: Handle, count: c_uint, operations: Any, flags: c_uint);

    cuGraphAddMemcpyNode(out: Any, graph: Any, after: Any, count: usize, copy: Any, context: Any);
    cuGraphAddMemsetNode(out: Any, graph: Any, after: Any, count: usize, settings: Any, context: Any);
    cuGraphAddNode(out: Any, graph: Any, after: Any, count: usize, settings: Any);
    cuGraphAddNode_v2(out: Any, graph: Any, after: Any, edges: Any, count: usize, settings: Any);
    cuGraphExecMemcpyNodeSetParams(graph: Any, node: Any, copy: Any, context: Any);
    cuGraphExecMemsetNodeSetParams(graph: Any, node: Any, settings: Any, context: Any);
    cuGraphExecNodeSetParams(graph: Any, node: Any, settings: Any);
    cuGraphExecUpdate_v2(graph: Any, from: Any, result: Any);
    cuTexObjectCreate(out: Any, resource: Any, texture: Any, view: Any);

    cuPointerGetAttribute(value: Any, attribute: c_int, pointer: u64);
    cuPointerGetAttributes(count: c_uint, attributes: Any, values: Any, pointer: u64);
    cuPointerSetAttribute(value: Any, attribute: c_int, pointer: u64);
}

//! The driver's functions that this engine uses, for the engine and for the library that is linked to them.

/// Passes the list on: `name(types);` one after the other.
#[macro_export]
macro_rules! driver_functions {
    ($then:ident) => {
        $then! {
            cuInit(c_uint);
            cuGetErrorName(c_int, *mut *const c_char);
            cuDeviceGet(*mut c_int, c_int);
            cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int);
            cuCtxSetCurrent(*mut c_void);
            cuCtxSynchronize();
            cuCtxEnablePeerAccess(*mut c_void, c_uint);
            cuMemGetAccess(*mut u64, *const Location, u64);
            cuMemGetInfo_v2(*mut usize, *mut usize);
            cuMemAlloc_v2(*mut u64, usize);
            cuMemAllocPitch_v2(*mut u64, *mut usize, usize, usize, c_uint);
            cuMemAllocManaged(*mut u64, usize, c_uint);
            cuMemFree_v2(u64);
            cuMemGetAddressRange_v2(*mut u64, *mut usize, u64);
            cuMemAllocAsync(*mut u64, usize, *mut c_void);
            cuMemFreeAsync(u64, *mut c_void);
            cuMemAllocFromPoolAsync(*mut u64, usize, *mut c_void, *mut c_void);
            cuDeviceGetDefaultMemPool(*mut *mut c_void, c_int);
            cuDeviceGetMemPool(*mut *mut c_void, c_int);
            cuDeviceSetMemPool(c_int, *mut c_void);
            cuMemPoolDestroy(*mut c_void);
            cuMemPoolCreate(*mut *mut c_void, *const PoolProperties);
            cuMemPoolTrimTo(*mut c_void, usize);
            cuMemPoolSetAttribute(*mut c_void, c_int, *mut c_void);
            cuMemPoolSetAccess(*mut c_void, *const Access, usize);
            cuMemsetD8_v2(u64, u8, usize);
            cuMemsetD32_v2(u64, c_uint, usize);
            cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
            cuMemcpyHtoD_v2(u64, *const c_void, usize);
            cuMemcpyDtoH_v2(*mut c_void, u64, usize);
            cuMemcpyDtoD_v2(u64, u64, usize);
            cuMemCreate(*mut u64, usize, *const AllocationProperties, u64);
            cuMemRelease(u64);
            cuMemAddressReserve(*mut u64, usize, usize, u64, u64);
            cuMemAddressFree(u64, usize);
            cuMemMap(u64, usize, usize, u64, u64);
            cuMemUnmap(u64, usize);
            cuMemSetAccess(u64, usize, *const Access, usize);
            cuMemRetainAllocationHandle(*mut u64, *mut c_void);
            cuMemGetAllocationPropertiesFromHandle(*mut AllocationProperties, u64);
            cuMemExportToShareableHandle(*mut c_int, u64, c_int, u64);
            cuMemGetHandleForAddressRange(*mut c_int, u64, usize, c_int, u64);
            cuMemImportFromShareableHandle(*mut u64, *mut c_void, c_int);
            cuIpcGetMemHandle(*mut [u8; 64], u64);
            cuIpcOpenMemHandle_v2(*mut u64, [u8; 64], c_uint);
            cuModuleLoadData(*mut *mut c_void, *const c_void);
            cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char);
            cuLaunchKernel(
                *mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void,
                *mut *mut c_void, *mut *mut c_void
            );
            cuStreamCreate(*mut *mut c_void, c_uint);
            cuStreamDestroy_v2(*mut c_void);
            cuStreamSynchronize(*mut c_void);
            cuStreamBeginCapture_v2(*mut c_void, c_int);
            cuStreamEndCapture(*mut c_void, *mut *mut c_void);
            cuGraphInstantiateWithFlags(*mut *mut c_void, *mut c_void, u64);
            cuGraphLaunch(*mut c_void, *mut c_void);
        }
    };
}

// Digest of each 2 MiB block of a range of device memory; `reference.rs` says what it is and computes the same.
//
// One thread block a block of memory, one thread a lane: neighbouring threads load neighbouring 16-byte words, so
// the kernel runs at the speed of the memory.

typedef unsigned long long u64;

#define LANES 256
#define WORDS ((2u << 20) / 16)

#define A 0x9e3779b185ebca87ull
#define B 0xc2b2ae3d27d4eb4full
#define C 0x165667b19e3779f9ull
#define D 0x27d4eb2f165667c5ull

static __device__ __forceinline__ u64 rotate(u64 word, int by) { return (word << by) | (word >> (64 - by)); }

static __device__ __forceinline__ u64 mix(u64 word) {
    word = (word ^ (word >> 33)) * 0xff51afd7ed558ccdull;
    word = (word ^ (word >> 33)) * 0xc4ceb9fe1a85ec53ull;
    return word ^ (word >> 33);
}

extern "C" __global__ void __launch_bounds__(LANES)
swapserve_digest(const ulonglong2 *base, ulonglong2 *digests, u64 key0, u64 key1) {
    const unsigned lane = threadIdx.x;
    const u64 number = lane + 1;
    const ulonglong2 *words = base + (u64)blockIdx.x * WORDS + lane;
    u64 a = key0 ^ number * C, b = key1 + number * D;
#pragma unroll 8
    for (unsigned at = 0; at < WORDS; at += LANES) {
        const ulonglong2 word = words[at];
        a = rotate((a ^ word.x) * A, 31) + b;
        b = rotate((b ^ word.y) * B, 29) + a;
    }
    __shared__ ulonglong2 sums[LANES / 32];
    u64 low = mix(a ^ number * B ^ key1), high = mix(b ^ number * A ^ key0);
    for (int distance = 16; distance > 0; distance /= 2) {
        low += __shfl_down_sync(~0u, low, distance);
        high += __shfl_down_sync(~0u, high, distance);
    }
    if (lane % 32 == 0) sums[lane / 32] = make_ulonglong2(low, high);
    __syncthreads();
    if (lane == 0) {
        ulonglong2 sum = sums[0];
        for (int warp = 1; warp < LANES / 32; warp++) {
            sum.x += sums[warp].x;
            sum.y += sums[warp].y;
        }
        digests[blockIdx.x] = sum;
    }
}

//! What a call costs that passes the preload library's gate, beside an empty call: the price that an engine pays for each
//! launch and copy while it is resident.
//!
//! ```text
//! cargo bench --bench gate
//! ```

#[allow(dead_code, reason = "closing is measured with swaps")]
#[path = "../preload/src/gate.rs"]
mod gate;

use divan::black_box;

fn main() {
    divan::main();
}

/// In the place of the driver's function.
#[inline(never)]
extern "C" fn launch(argument: u64) -> u64 {
    black_box(argument)
}

#[divan::bench(threads = [1, 2, 4])]
fn straight() -> u64 {
    launch(black_box(1))
}

#[divan::bench(threads = [1, 2, 4])]
fn through_the_gate() -> u64 {
    let _inside = gate::pass();
    launch(black_box(1))
}

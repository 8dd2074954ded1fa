//! Finds out that an engine which is held has come to a GPU all the same: it reaches the driver past the preload library
//! (an own loader's scope, a wrapper that dropped `LD_PRELOAD`, a static program). It is stopped at once, because another
//! engine may be sizing itself by what is free there, and from then on it is started in its turn alone.

use crate::{engine::Engine, swap::Swapper};
use std::time::Duration;

/// Pause between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Comes back when a process of the engine is seen on a GPU.
pub async fn until_on_gpu(engine: &Engine, swapper: &Swapper) {
    loop {
        tokio::time::sleep(LOOK).await;
        // Where NVML does not tell whose memory is whose, nobody can know.
        let held = swapper.gpu_memory(engine).await.unwrap_or_default();
        if held.iter().any(|bytes| !bytes.is_zero()) {
            return;
        }
    }
}

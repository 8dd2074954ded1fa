//! `checkpoint` and `sleep+checkpoint`: the driver moves the engine's GPU memory (`cuCheckpointProcess*`).
//!
//! | module | role |
//! | --- | --- |
//! | [`group`] | the engine's CUDA processes, moved together through the driver's states |

pub mod group;

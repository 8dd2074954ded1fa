//! What an engine is: its command, its process tree, its address, its readiness, its log.
//!
//! An [`Engine`] belongs to one worker task; nobody else touches it.

use crate::config::ModelPlan;
use std::sync::Arc;

/// One model's engine: what is needed to start it, and what runs of it.
pub struct Engine {
    /// Its configuration.
    pub plan: Arc<ModelPlan>,
}

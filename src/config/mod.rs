//! `models.toml` to a checked [`Plan`].
//!
//! Raw TOML with spans → validation that shows all mistakes at once, each with file, line and remedy → [`Plan`].
//! The rest of the program sees only the plan.

mod mistake;
pub mod plan;

pub use mistake::{Code, Mistake, Mistakes};
pub use plan::{DisconnectPolicy, Hooks, ModelPlan, Plan, Preset};

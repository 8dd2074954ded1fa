//! `swapserve schema`: the JSON schema of `models.toml`, for editors.

use super::{Exit, Outcome};
use std::io::Write;

pub(super) fn execute() -> Outcome {
    std::io::stdout().lock().write_all(crate::config::schema::text().as_bytes())?;
    Ok(Exit::Success.into())
}

//! `swapserve schema`: the JSON schema of `models.toml`, for editors.

use super::{Exit, Outcome, output};

pub(super) fn execute() -> Outcome {
    output::print(crate::config::schema::text().as_bytes())?;
    Ok(Exit::Success.into())
}

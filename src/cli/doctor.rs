//! `swapserve doctor`: what this node and job can do, each line with its remedy.

use super::{Error, Exit, Globals, Outcome, service};
use crate::daemon::Ground;

/// Runs the verb.
pub fn execute(globals: &Globals) -> Outcome {
    service::on_data_path(async {
        let _ = (Ground::find().await?, globals);
        Err(Error::new(Exit::Unavailable, "not yet"))
    })
}

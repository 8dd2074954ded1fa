//! `swapserve man [DIR]`: the man pages, made from the same types as `--help`.

use super::{Error, Exit, Outcome, args::ManArgs, output};
use std::path::Path;

pub(super) fn execute(args: &ManArgs) -> Outcome {
    match &args.directory {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(super::command()).render(&mut page)?;
            output::print(&page)?;
        }
        Some(directory) => write_all(directory).map_err(|error| {
            Error::new(Exit::CantCreate, format!("cannot write the man pages to {}", directory.display()))
                .because(error)
                .remedy("name a directory that you can write to")
        })?,
    }
    Ok(Exit::Success.into())
}

fn write_all(directory: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(directory)?;
    clap_mangen::generate_to(super::command(), directory)
}

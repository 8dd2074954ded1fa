//! The program's own log: on standard error, as lines for people or JSON.

use crate::cli::args::LogFormat;
use std::io;
use tracing_subscriber::EnvFilter;

/// Begins to log. `SWAPSERVE_LOG` overrides what `-v` asks for, in the syntax of `RUST_LOG`.
pub fn init(verbose: u8, format: LogFormat) {
    let level = match verbose {
        0 => "warn,swapserve=info",
        1 => "info,swapserve=debug",
        2 => "debug,swapserve=trace",
        _ => "trace",
    };
    let filter = EnvFilter::try_from_env("SWAPSERVE_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_target(false);
    // A second call (in tests) keeps the first subscriber.
    let _ = match format {
        LogFormat::Text => builder.with_ansi(false).try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

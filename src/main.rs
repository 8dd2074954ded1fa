//! Parses, dispatches, and maps errors to exit codes; all else is in the library.

fn main() -> std::process::ExitCode {
    // The daemon's own child, not a verb for people: it must not pay for, or depend on, the command line.
    if std::env::args_os().nth(1).is_some_and(|verb| verb == "gpu-server") {
        swapserve::gpu::server::main();
    }
    swapserve::cli::main(std::env::args_os())
}

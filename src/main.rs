//! Parses, dispatches, and maps errors to exit codes; all else is in the library.

fn main() -> std::process::ExitCode {
    swapserve::cli::main(std::env::args_os())
}

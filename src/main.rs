//! Parses, dispatches, and maps errors to exit codes; all else is in the library.

fn main() -> std::process::ExitCode {
    // The daemon's own children, not verbs for people: they must not pay for, or depend on, the command line.
    let verb = std::env::args_os().nth(1);
    let is = |name: &str| verb.as_ref().is_some_and(|verb| verb == name);
    if is(swapserve::gpu::launch::SERVER_VERB) {
        swapserve::gpu::server::main();
    }
    if is(swapserve::process::warden::VERB) {
        swapserve::process::warden::main(std::env::args_os().skip(2), swapserve::job::leftovers::sweep_own);
    }
    if is(swapserve::process::janitor::VERB) {
        swapserve::process::janitor::main(std::env::args_os().skip(2), swapserve::job::leftovers::sweep_own);
    }
    if swapserve::cli::epilog::is_wanted() {
        return swapserve::cli::epilog::execute();
    }
    swapserve::cli::main(std::env::args_os())
}

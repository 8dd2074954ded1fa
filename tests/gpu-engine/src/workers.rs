//! Worker processes: the same program again, holding as much, driven over its standard input.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::cuda::Cuda;
use crate::memory::Held;
use crate::options::Options;
use crate::shared::Shared;

/// The engine's workers.
#[derive(Debug)]
pub struct Workers(Vec<(Child, BufReader<ChildStdout>)>);

impl Workers {
    /// Starts what the options ask for and waits until each holds its memory.
    pub fn start(options: &Options, shared: &Shared) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut workers = Self(Vec::new());
        for number in 0..options.workers {
            let mut command = Command::new(&program);
            command
                .args(["--worker", "--model", &format!("{}-{number}", options.model)])
                .args(["--weights", &options.weights.to_string()])
                .args(options.print_maps.then_some("--print-maps"))
                .args(&shared.arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped());
            // SAFETY: prctl with a signal number is async-signal-safe.
            unsafe {
                command.pre_exec(|| {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    Ok(())
                });
            }
            let mut child = command.spawn().map_err(|error| format!("worker {number}: {error}"))?;
            let output = child.stdout.take().ok_or("the worker's output is piped")?;
            workers.0.push((child, BufReader::new(output)));
        }
        workers.check(false)?;
        Ok(workers)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Has every worker check its memory.
    pub fn check(&mut self, whole: bool) -> Result<(), String> {
        for (number, (child, output)) in self.0.iter_mut().enumerate() {
            let input = child.stdin.as_mut().ok_or("the worker's input is piped")?;
            let mut line = String::new();
            writeln!(input, "{}", if whole { "whole" } else { "sample" })
                .and_then(|()| output.read_line(&mut line))
                .map_err(|error| format!("worker {number}: {error}"))?;
            if line.trim() != "ok" {
                return Err(format!(
                    "worker {number}: {}",
                    if line.is_empty() { "ended" } else { line.trim() }
                ));
            }
        }
        Ok(())
    }
}

/// A worker's main: checks its memory at each line, ends with its parent.
pub fn wait_for_parent(cuda: &Cuda, held: &Held) -> Result<(), String> {
    for line in std::io::stdin().lines() {
        let whole = line.map_err(|error| error.to_string())? == "whole";
        match held.check(cuda, whole) {
            Ok(()) => println!("ok"),
            Err(error) => println!("{error}"),
        }
    }
    Ok(())
}

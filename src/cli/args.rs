//! The options of every verb, as clap sees them. The doc comments are the texts of `--help` and the man page.

use super::output::{Mode, Output, Style};
use crate::observe::logging::LogFormat;
use clap::{Args, ColorChoice, Parser, Subcommand};
use std::{
    ffi::OsString,
    io::{self, IsTerminal},
    net::IpAddr,
    path::PathBuf,
    time::Duration,
};

/// One Slurm allocation, many language models: engines hot-swapped on the job's GPUs behind one endpoint.
///
/// Describe your models in models.toml. `swapserve run` starts each engine once, swaps it out, opens one
/// OpenAI-compatible endpoint, runs your command with OPENAI_BASE_URL and OPENAI_API_KEY set, and leaves nothing behind.
#[derive(Debug, Parser)]
#[command(
    name = "swapserve",
    version,
    max_term_width = 110,
    after_help = "\
Examples:
  swapserve validate                             check models.toml; nothing is started
  srun swapserve run -- python evaluate.py       run a program with all its models behind one endpoint
  srun swapserve serve &                         keep the endpoint open until the job ends
  eval \"$(swapserve env)\"                        join it from another shell of the job
  swapserve status                               who is resident, who waits, how each engine is swapped"
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// Options of every verb.
    #[command(flatten)]
    pub globals: Globals,
}

/// Options that every verb takes.
#[derive(Clone, Debug, Args)]
pub struct Globals {
    /// Print JSON instead of text; errors too, on standard error.
    #[arg(long, global = true, conflicts_with = "quiet", help_heading = "Output")]
    pub json: bool,
    /// Print nothing but errors and what was asked for.
    #[arg(short, long, global = true, help_heading = "Output")]
    pub quiet: bool,
    /// Log more: -v what is done, -vv every step, -vvv everything.
    #[arg(short, action = clap::ArgAction::Count, global = true, help_heading = "Output")]
    pub verbose: u8,
    /// When to use colours; NO_COLOR is honoured.
    #[arg(long, value_name = "WHEN", default_value = "auto", global = true, help_heading = "Output")]
    pub color: ColorChoice,
}

impl Globals {
    /// Where and how a verb prints.
    pub fn output(&self) -> Output {
        let mode = match (self.json, self.quiet) {
            (true, _) => Mode::Json,
            (_, true) => Mode::Quiet,
            _ => Mode::Human,
        };
        Output { mode, style: Style { color: self.color(io::stdout().is_terminal()) } }
    }

    /// Whether errors are printed in colour.
    pub fn color_on_stderr(&self) -> bool {
        self.color(io::stderr().is_terminal())
    }

    fn color(&self, terminal: bool) -> bool {
        match self.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            // https://no-color.org: set and not empty.
            ColorChoice::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty()),
        }
    }
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the models, run a command with the endpoint in its environment, and end with its status
    #[command(after_help = "\
Examples:
  srun swapserve run -- python evaluate.py
  swapserve run --config eval.toml --journal run.jsonl -- bash -c 'curl -s $OPENAI_BASE_URL/models'

The command gets OPENAI_BASE_URL and OPENAI_API_KEY. Its status is swapserve's status.")]
    Run(RunArgs),
    /// Serve the models until the job ends, a signal comes, or `swapserve stop`
    #[command(after_help = "\
Examples:
  srun swapserve serve --port 8000 &
  swapserve wait && eval \"$(swapserve env)\" && python evaluate.py; swapserve stop")]
    Serve(ServeArgs),
    /// Wait until the models answer
    #[command(after_help = "\
Examples:
  swapserve wait                      all models
  swapserve wait chat --timeout 10m   one of them; exit code 75 when it takes longer")]
    Wait(WaitArgs),
    /// Show each model's state, what it holds, how it is swapped, and who waits
    Status(EndpointArgs),
    /// Say why a model is where it is: what it waits for, who holds its place, which mechanism was chosen
    Explain(ModelArgs),
    /// Swap a model in or out by hand, or pin it
    #[command(
        subcommand,
        after_help = "\
Examples:
  swapserve swap in coder
  swapserve swap pin chat"
    )]
    Swap(SwapCommand),
    /// Show an engine's own log
    #[command(after_help = "\
Examples:
  swapserve logs chat --lines 200
  swapserve logs chat --follow")]
    Logs(LogsArgs),
    /// Print the endpoint's variables as exports for a shell: eval "$(swapserve env)"
    Env(EndpointArgs),
    /// Show what this node and job can do, each line with its remedy
    Doctor,
    /// Check the config and every path in it, in a job also against what the job has; no engine is started
    #[command(after_help = "\
Examples:
  swapserve validate
  swapserve validate --config eval.toml --json")]
    Validate(ConfigArgs),
    /// End a running `serve`: engines are stopped in order, nothing is left
    Stop(StopArgs),
    /// Try the config's models and bounds under a load, faster than time; nothing is started
    #[command(after_help = "\
Examples:
  swapserve simulate --per-hour 600 --takes 8s           random requests against this config
  swapserve simulate --gpus 1 --gpu-memory 80GiB --trace calls.jsonl
  swapserve simulate --replay run.jsonl                  does this version decide as that run's did?")]
    Simulate(SimulateArgs),
    /// Print the JSON schema of models.toml
    Schema,
    /// Print completions for a shell
    #[command(after_help = "\
Examples:
  swapserve completions bash > ~/.local/share/bash-completion/completions/swapserve")]
    Completions(CompletionsArgs),
    /// Print the man page, or write one file a verb into a directory
    Man(ManArgs),
}

/// Where the config is.
#[derive(Clone, Debug, Args)]
pub struct ConfigArgs {
    /// The config.
    #[arg(short, long, value_name = "FILE", env = "SWAPSERVE_CONFIG", default_value = "models.toml")]
    pub config: PathBuf,
}

/// `serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// TCP port of the endpoint, instead of the config's; 0 lets the kernel choose.
    #[arg(short, long)]
    pub port: Option<u16>,
    /// Address to listen on, instead of the config's.
    #[arg(long, value_name = "ADDRESS")]
    pub host: Option<IpAddr>,
    /// Where to publish the endpoint's address and key (mode 0600); the other verbs find the service through it.
    #[arg(long, value_name = "FILE", env = "SWAPSERVE_ENDPOINT_FILE")]
    pub endpoint_file: Option<PathBuf>,
    /// Directory for sockets, logs and keys (mode 0700, removed at the end); by default on the node's own disk.
    #[arg(long, value_name = "DIR", env = "SWAPSERVE_RUN_DIR")]
    pub run_dir: Option<PathBuf>,
    /// Keep the engines' logs after the run: in a directory of this run's own in DIR (mode 0700).
    #[arg(long, value_name = "DIR", env = "SWAPSERVE_LOG_DIR")]
    pub log_dir: Option<PathBuf>,
    /// Do not try each engine's swap at the start: use the first mechanism of its ladder, and fall to the next when it fails.
    #[arg(long)]
    pub no_trial: bool,
    /// Compare every block of an engine that was parked with what went out, at each swap in.
    #[arg(long)]
    pub verify: bool,
    /// Write every event and decision to a file, one JSON object a line.
    #[arg(long, value_name = "FILE")]
    pub journal: Option<PathBuf>,
    /// How the log is written on standard error.
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// `run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// How to serve.
    #[command(flatten)]
    pub serve: ServeArgs,
    /// The command to run, with its arguments.
    #[arg(last = true, required = true, value_name = "CMD")]
    pub command: Vec<OsString>,
}

/// `simulate`.
#[derive(Clone, Debug, Args)]
pub struct SimulateArgs {
    /// The config.
    #[command(flatten)]
    pub config: ConfigArgs,
    /// Requests to simulate, one {"at": seconds, "model": "name", "takes": seconds} a line, instead of random ones.
    #[arg(long, value_name = "FILE", help_heading = "Load")]
    pub trace: Option<PathBuf>,
    /// Requests an hour over all models; the second model is asked for half as often as the first, and so on.
    #[arg(long, value_name = "N", default_value_t = 360.0, help_heading = "Load")]
    pub per_hour: f64,
    /// How long requests keep arriving.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration, help_heading = "Load")]
    pub length: Duration,
    /// How long an engine works on a request, on average.
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = humantime::parse_duration, help_heading = "Load")]
    pub takes: Duration,
    /// Requests that arrive together for the same model.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub burst: u32,
    /// Where the random numbers begin; the same seed gives the same run.
    #[arg(long, value_name = "N", default_value_t = 1, help_heading = "Load")]
    pub seed: u64,
    /// GPUs of the job; by default as many as the largest model uses.
    #[arg(long, value_name = "N", help_heading = "Job")]
    pub gpus: Option<u8>,
    /// Memory of each GPU.
    #[arg(long, value_name = "SIZE", default_value = "80GiB", help_heading = "Job")]
    pub gpu_memory: bytesize::ByteSize,
    /// The job's host memory.
    #[arg(long, value_name = "SIZE", default_value = "512GiB", help_heading = "Job")]
    pub host_memory: bytesize::ByteSize,
    /// The job's cores.
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Job")]
    pub cores: u16,
    /// Replay a run's journal (`run --journal FILE`) instead, and say whether this version decides the same.
    #[arg(long, value_name = "JOURNAL", conflicts_with = "trace")]
    pub replay: Option<PathBuf>,
}

/// How a verb finds the running service.
#[derive(Clone, Debug, Args)]
pub struct EndpointArgs {
    /// The endpoint file of the service; by default this job's.
    #[arg(long, value_name = "FILE", env = "SWAPSERVE_ENDPOINT_FILE")]
    pub endpoint_file: Option<PathBuf>,
}

/// `wait`.
#[derive(Clone, Debug, Args)]
pub struct WaitArgs {
    /// Models to wait for; all by default.
    #[arg(value_name = "MODEL")]
    pub models: Vec<String>,
    /// Longest wait, such as 90s or 10m; forever by default.
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// The service.
    #[command(flatten)]
    pub endpoint: EndpointArgs,
}

/// One model of a running service.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// The model's name or one of its aliases.
    pub model: String,
    /// The service.
    #[command(flatten)]
    pub endpoint: EndpointArgs,
}

/// `swap`.
#[derive(Clone, Debug, Subcommand)]
pub enum SwapCommand {
    /// Make a model resident now; others make room
    In(ModelArgs),
    /// Swap a model out now, after the requests in flight
    Out(ModelArgs),
    /// Keep a model resident: it is never chosen to make room
    Pin(ModelArgs),
    /// Let a pinned model make room again
    Unpin(ModelArgs),
}

/// `logs`.
#[derive(Clone, Debug, Args)]
pub struct LogsArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Go on showing what is written.
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines to show.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 50)]
    pub lines: usize,
}

/// `stop`.
#[derive(Clone, Debug, Args)]
pub struct StopArgs {
    /// How long to wait for the service's end, such as 30s; it ends all the same. Default 1m.
    #[arg(short, long, value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
    /// The service.
    #[command(flatten)]
    pub endpoint: EndpointArgs,
}

/// `completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell.
    pub shell: clap_complete::Shell,
}

/// `man`.
#[derive(Clone, Debug, Args)]
pub struct ManArgs {
    /// Directory that gets swapserve.1 and one page a verb; without it the main page is printed.
    #[arg(value_name = "DIR")]
    pub directory: Option<PathBuf>,
}

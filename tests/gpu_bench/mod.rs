//! A place to test what drives GPUs: the software driver, or with `SWAPSERVE_TEST_GPU=real` the machine's own.
#![allow(dead_code, reason = "each test program uses its part")]

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use software_gpu::config::{Gpu, Machine};
use software_gpu::lab::{self, Lab};
use swapserve::gpu::GpuClient;
use swapserve::gpu::launch::ServerCommand;
use swapserve::process::Spawner;

/// GiB of a software GPU.
const GIB: u64 = 1 << 30;

/// Names the place that a gpu server belongs to.
const MARK: &str = "SWAPSERVE_TEST_BENCH";

/// Where a test runs.
pub struct Bench {
    lab: Option<Lab>,
    /// One for each place of this test program.
    number: u32,
}

impl Bench {
    /// The software driver with `gpus` GPUs of 1 GiB; nothing when tests run on a real GPU, for tests that
    /// inject faults or need a machine of a certain shape.
    pub fn software(gpus: usize) -> Option<Self> {
        Self::software_machine(gpus).map(Self::on)
    }

    /// The machine of [`Bench::software`], to be changed before it is used.
    pub fn software_machine(gpus: usize) -> Option<Machine> {
        let gpu = Gpu { bytes: GIB, node: None };
        (!real()).then(|| Machine { gpus: vec![gpu; gpus], context: 16 << 20, ..Machine::default() })
    }

    /// The software driver with one GPU of 1 GiB, or the real one.
    pub fn any() -> Self {
        Self::software(1).unwrap_or_else(|| Self::with(None))
    }

    /// The software driver with one GPU whose checkpoints and restores take their time: 64 MiB in a second.
    pub fn slow() -> Self {
        let gpu = Gpu { bytes: GIB, node: None };
        Self::on(Machine { gpus: vec![gpu], out_mib_s: 64, in_mib_s: 64, ..Machine::default() })
    }

    /// That software machine.
    pub fn on(machine: Machine) -> Self {
        Self::with(Some(Lab::with(machine).expect("a temporary folder can be made")))
    }

    fn with(lab: Option<Lab>) -> Self {
        static PLACES: AtomicU32 = AtomicU32::new(0);
        Self { lab, number: PLACES.fetch_add(1, Ordering::Relaxed) }
    }

    /// The software machine, if it is one.
    pub fn lab(&self) -> Option<&Lab> {
        self.lab.as_ref()
    }

    /// Replaces the faults to inject.
    pub fn set_faults(&self, lines: &str) {
        let lab = self.lab.as_ref().expect("faults are for the software driver");
        lab.set_faults(lines).expect("the shared folder is writable");
    }

    /// The faults that are left to inject.
    pub fn faults_left(&self) -> String {
        let lab = self.lab.as_ref().expect("faults are for the software driver");
        std::fs::read_to_string(lab.directory().join("faults")).unwrap_or_default()
    }

    /// What children need in their environment.
    pub fn environment(&self) -> Vec<(String, String)> {
        self.lab.as_ref().map(Lab::environment).unwrap_or_default()
    }

    /// A gpu server.
    pub fn server(&self) -> GpuClient {
        self.server_with(&[])
    }

    /// A gpu server with more variables.
    pub fn server_with(&self, more: &[(&str, &str)]) -> GpuClient {
        let mut command = self.server_command();
        command.environment.extend(more.iter().map(|(name, value)| (name.into(), value.into())));
        GpuClient::start(spawner(), command)
    }

    /// Kills the gpu servers of this place, and waits until `client` has started the next one.
    pub async fn kill_server(&self, client: &GpuClient) {
        let before = client.generation();
        self.signal_server(rustix::process::Signal::KILL);
        until("the next gpu server is there", || client.generation() > before).await;
    }

    /// Sends the gpu servers of this place a signal.
    pub fn signal_server(&self, signal: rustix::process::Signal) {
        let mark = format!("{MARK}={}", self.mark());
        let servers = processes().filter(|pid| {
            let marked = std::fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == mark.as_bytes()));
            marked
                && std::fs::read(format!("/proc/{pid}/cmdline"))
                    .is_ok_and(|all| all.ends_with(b"gpu-server\0"))
        });
        let sent = servers.filter_map(rustix::process::Pid::from_raw).map(|pid| {
            rustix::process::kill_process(pid, signal).expect("it is ours");
        });
        assert!(sent.count() > 0, "no gpu server runs");
    }

    /// Tells this place's gpu servers from those of tests beside it.
    fn mark(&self) -> String {
        format!("{}-{}", std::process::id(), self.number)
    }

    /// Another program in the gpu server's place.
    pub fn server_program(&self, program: &str) -> GpuClient {
        GpuClient::start(spawner(), ServerCommand { program: program.into(), ..self.server_command() })
    }

    /// How a gpu server is started here: the program that cargo built, or the one that `SWAPSERVE_TEST_PROGRAM`
    /// names where there is no cargo.
    pub fn server_command(&self) -> ServerCommand {
        ServerCommand {
            program: std::env::var_os("SWAPSERVE_TEST_PROGRAM")
                .or(option_env!("CARGO_BIN_EXE_swapserve").map(Into::into))
                .expect("cargo names the program in tests and benches")
                .into(),
            arguments: vec!["gpu-server".into()],
            environment: self
                .environment()
                .into_iter()
                .chain([(MARK.to_owned(), self.mark())])
                .map(|(name, value)| (name.into(), value.into()))
                .collect(),
            park: None,
        }
    }

    /// The program of the test engine: built, or named by `SWAPSERVE_TEST_ENGINE` where there is no cargo. Its library
    /// `libgpu_engine_linked.so` lies beside it, for tests of the ways to the driver.
    pub fn engine_program() -> PathBuf {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let built = || match std::env::var_os("SWAPSERVE_TEST_ENGINE") {
            Some(path) => path.into(),
            None => lab::build(&["gpu-engine"]).join("gpu-engine"),
        };
        BUILT.get_or_init(built).clone()
    }

    /// The preload library: built, or named by `SWAPSERVE_TEST_PRELOAD` where there is no cargo.
    pub fn preload_library() -> PathBuf {
        static BUILT: OnceLock<PathBuf> = OnceLock::new();
        let built = || match std::env::var_os("SWAPSERVE_TEST_PRELOAD") {
            Some(path) => path.into(),
            None => lab::build(&["swapserve-preload"]).join("libswapserve_preload.so"),
        };
        BUILT.get_or_init(built).clone()
    }

    /// A test engine that holds its memory and listens.
    pub fn engine(&self, arguments: &[&str]) -> TestEngine {
        self.engine_with(arguments, &[])
    }

    /// A test engine with more variables.
    pub fn engine_with(&self, arguments: &[&str], more: &[(OsString, OsString)]) -> TestEngine {
        let mut child = Command::new(Self::engine_program())
            .args(arguments)
            .envs(self.environment())
            .envs(more.iter().map(|(name, value)| (name, value)))
            .stdout(Stdio::piped())
            .spawn()
            .expect("the test engine starts");
        let output = child.stdout.take().expect("its output is piped");
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).expect("it prints a line");
        let port = line.trim().rsplit(':').next().and_then(|port| port.parse().ok());
        TestEngine { port: port.unwrap_or_else(|| panic!("no port in {line:?}")), child }
    }
}

/// Every process id there is.
fn processes() -> impl Iterator<Item = i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// A thread that starts processes, for this test.
pub fn spawner() -> Spawner {
    Spawner::start().expect("a thread can be started")
}

/// Waits until something is so, at most ten seconds.
pub async fn until(what: &str, so: impl Fn() -> bool) {
    let begun = std::time::Instant::now();
    while !so() {
        assert!(begun.elapsed() < Duration::from_secs(10), "not within ten seconds: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Whether tests are to run on the machine's own GPU.
pub fn real() -> bool {
    std::env::var("SWAPSERVE_TEST_GPU").is_ok_and(|value| value == "real")
}

/// What `CUDA_VISIBLE_DEVICES` calls the gpu server's first GPU.
pub fn first_gpu() -> String {
    let all = std::env::var("CUDA_VISIBLE_DEVICES").ok().filter(|_| real());
    all.and_then(|all| all.split(',').next().map(str::to_owned)).unwrap_or_else(|| "0".to_owned())
}

/// A running test engine; it ends with this value.
pub struct TestEngine {
    child: Child,
    port: u16,
}

impl TestEngine {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id() as i32
    }

    /// Its TCP port.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether it still runs.
    pub fn alive(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|status| status.is_none())
    }

    /// Has it check every byte of its memory, its workers' too.
    pub fn check(&self) {
        let (status, body) = self.request("GET", "/check", "").expect("the engine answers");
        assert_eq!(status, 200, "{body}");
    }

    /// One request, at most ten seconds.
    pub fn request(&self, method: &str, path: &str, body: &str) -> std::io::Result<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nhost: engine\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let body = text.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
        Ok((status, body))
    }
}

impl Drop for TestEngine {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! A running `swapserve serve`, and how tests speak to it.

use serde_json::{Value, json};
use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// Longest wait for anything; only a test that fails waits so long.
pub const LONGEST: Duration = Duration::from_secs(120);

/// The program, with nothing of the surroundings that could change what it does.
pub fn swapserve() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapserve"));
    for name in
        ["SWAPSERVE_CONFIG", "SWAPSERVE_ENDPOINT_FILE", "SWAPSERVE_RUN_DIR", "SLURM_JOB_ID", "NO_COLOR"]
    {
        command.env_remove(name);
    }
    // The machine may have GPUs; these tests have none.
    command.env("CUDA_VISIBLE_DEVICES", "");
    command
}

/// A model served by the engine that misbehaves, with these further arguments.
pub fn fake(name: &str, arguments: &str, more: &str) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/fake.py");
    format!(
        "[models.{name}]\nengine = \"custom\"\ngpus = 0\nstop_grace = \"2s\"\nstart_timeout = \"30s\"\n\
         command = \"python3 {script} --port {{{{ port }}}} --answer {name} {arguments}\"\n{more}\n"
    )
}

/// A directory with a config in it.
pub fn config(text: &str) -> (TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("ss").tempdir().unwrap();
    let file = dir.path().join("models.toml");
    fs::write(&file, text).unwrap();
    (dir, file)
}

/// Runs `swapserve run` to its end.
pub fn run(file: &Path, options: &[&str], command: &[&str]) -> Output {
    let mut run = swapserve();
    run.arg("run").arg("--config").arg(file).args(options).arg("--").args(command);
    run.output().unwrap()
}

/// A service that is up. Dropping it kills it, should a test have failed before its end.
pub struct Service {
    pub dir: TempDir,
    pub child: Child,
    endpoint: PathBuf,
}

impl Service {
    /// Starts one and waits until every model has answered.
    pub fn start(text: &str, options: &[&str]) -> Self {
        Self::up(Self::launch(text, options))
    }

    fn up(service: Self) -> Self {
        service.wait();
        service
    }

    /// Waits until every model has answered.
    pub fn wait(&self) {
        let waited = self.verb(&["wait", "--timeout", "2m"]);
        assert!(waited.status.success(), "{}\n{}", String::from_utf8_lossy(&waited.stderr), self.log());
    }

    /// Starts one; it may not be up yet.
    pub fn launch(text: &str, options: &[&str]) -> Self {
        Self::launch_in(text, options, &[])
    }

    /// Starts one with these variables, and waits until every model has answered.
    pub fn start_in(text: &str, environment: &[(String, String)]) -> Self {
        Self::start_with(text, &[], environment)
    }

    /// The same with these options.
    pub fn start_with(text: &str, options: &[&str], environment: &[(String, String)]) -> Self {
        Self::up(Self::launch_in(text, options, environment))
    }

    /// The same, not waiting.
    pub fn launch_in(text: &str, options: &[&str], environment: &[(String, String)]) -> Self {
        let (dir, file) = config(text);
        let endpoint = dir.path().join("endpoint.json");
        let log = fs::File::create(dir.path().join("log")).unwrap();
        let mut serve = swapserve();
        serve.arg("serve").arg("--config").arg(file).arg("--endpoint-file").arg(&endpoint);
        if !options.contains(&"--run-dir") {
            serve.arg("--run-dir").arg(dir.path().join("run"));
        }
        serve.args(options);
        if !environment.is_empty() {
            serve.env_remove("CUDA_VISIBLE_DEVICES").envs(environment.iter().cloned());
        }
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        Service { child: serve.spawn().unwrap(), dir, endpoint }
    }

    /// One of the verbs that speak to it.
    pub fn verb(&self, arguments: &[&str]) -> Output {
        swapserve().args(arguments).arg("--endpoint-file").arg(&self.endpoint).output().unwrap()
    }

    /// What it published.
    pub fn endpoint(&self) -> Value {
        serde_json::from_slice(&fs::read(&self.endpoint).unwrap()).unwrap()
    }

    /// `swapserve status --json`.
    pub fn status(&self) -> Value {
        let output = self.verb(&["status", "--json"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// One model's row of it.
    pub fn model(&self, name: &str) -> Value {
        let status = self.status();
        status["models"].as_array().unwrap().iter().find(|m| m["name"] == name).unwrap().clone()
    }

    /// Its log so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    /// A chat request, not sent yet.
    pub fn chat(&self, model: &str, more: Value) -> reqwest::blocking::RequestBuilder {
        let endpoint = self.endpoint();
        let mut body =
            json!({ "model": model, "messages": [{ "role": "user", "content": "count" }], "temperature": 0 });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let client = reqwest::blocking::Client::builder().timeout(LONGEST).no_proxy().build().unwrap();
        let url = format!("{}/chat/completions", endpoint["url"].as_str().unwrap());
        client.post(url).bearer_auth(endpoint["key"].as_str().unwrap_or_default()).json(&body)
    }

    /// What the model says to one chat request.
    pub fn answer(&self, model: &str) -> String {
        let answer = self.chat(model, json!({ "max_tokens": 8 })).send().unwrap();
        let (status, text) = (answer.status(), answer.text().unwrap());
        assert_eq!(status, 200, "{model}: {text}\n{}", self.log());
        let value: Value = serde_json::from_str(&text).unwrap();
        value["choices"][0]["message"]["content"].as_str().unwrap().to_owned()
    }

    /// Sends the daemon a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }

    /// Waits until the daemon has ended; its exit code.
    pub fn ended(&mut self) -> i32 {
        let mut code = None;
        eventually("the daemon ends", || {
            code = self.child.try_wait().unwrap();
            code.is_some()
        });
        code.unwrap().code().unwrap_or(-1)
    }

    /// Nothing of it is left: no process that carries its directory in its command or environment, no file.
    pub fn assert_gone(&self) {
        let mark = self.dir.path().to_str().unwrap().to_owned();
        eventually("every process ends", || processes_with(&mark).is_empty());
        assert!(!self.dir.path().join("run").exists(), "the run directory is left");
        assert!(!self.endpoint.exists(), "the endpoint file is left");
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for something, with a deadline.
pub fn eventually(what: &str, mut seen: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !seen() {
        assert!(begun.elapsed() < LONGEST, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Processes, this one left out, with `mark` in their arguments or environment.
pub fn processes_with(mark: &str) -> Vec<i32> {
    let has = |pid: i32, file: &str| {
        let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        memchr::memmem::find(&bytes, mark.as_bytes()).is_some()
    };
    let pids =
        fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        *pid != std::process::id().cast_signed() && (has(*pid, "cmdline") || has(*pid, "environ"))
    })
    .collect()
}

/// Where `scripts/engines` put real engines; `None`, with a word about it, where it has not been run.
pub fn real_engines() -> Option<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join(".engines");
    let at = std::env::var_os("SWAPSERVE_ENGINES").map_or_else(default, PathBuf::from);
    let there = at.join("bin/llama-server").exists();
    if !there {
        eprintln!("skipped: no engines in {}; scripts/engines makes them", at.display());
    }
    there.then_some(at)
}

/// A model that counts, behind llama.cpp's server.
pub fn counter(engines: &Path, name: &str, swap: &str) -> String {
    let server = engines.join("bin/llama-server");
    let weights = engines.join("models").join(format!("{name}.gguf"));
    format!(
        "[models.{name}]\nengine = \"llama-cpp\"\ncommand = [{server:?}]\nmodel = {weights:?}\ngpus = 0\nswap = {swap:?}\n\
         args = [\"-c\", \"8192\", \"-np\", \"2\", \"-t\", \"1\"]\nstop_grace = \"5s\"\n"
    )
}

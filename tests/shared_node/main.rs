//! Two real users on one node: swapserve runs as one, and the other tries what `SECURITY.md` says cannot be done. Needs root,
//! to be both.

#[path = "../gpu_bench/mod.rs"]
mod gpu_bench;
mod people;

use people::{OTHER, OWNER, Place, two_users, user};
use serde_json::Value;
use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::Child,
    time::{Duration, Instant},
};

/// A service of the owner's with two engines: one that has no key, and one that has.
struct Run {
    place: Place,
    child: Child,
    endpoint: Value,
    status: Value,
}

impl Run {
    fn start() -> Self {
        let place = Place::new();
        let fake = place.path("fake.py");
        let model = |name: &str, more: &str| {
            format!(
                "[models.{name}]\nengine = \"custom\"\ngpus = 0\nstop_grace = \"2s\"\n\
                 command = \"python3 {} --port {{{{ port }}}} --answer {name}\"\n{more}\n",
                fake.display()
            )
        };
        let config =
            // Slots for all: an engine that is out answers nobody, and would prove nothing.
            "[scheduler]\nrunning_slots = 8\n".to_owned() + &model("one", "env = { ENGINE_KEY = \"{{ api_key }}\" }") + &model("open", "") + &llama(&place);
        let mut child = place.serve(&config, &["-vvv"]);
        let begun = Instant::now();
        let waited = loop {
            let waited = place.verb(&["wait", "--timeout", "2m"]);
            if waited.status.success() {
                break true;
            }
            if begun.elapsed() > Duration::from_secs(120) || child.try_wait().unwrap().is_some() {
                break false;
            }
        };
        assert!(waited, "{}", place.log());
        let file = fs::read_dir(place.path("owner/.swapserve/jobs")).unwrap().next().unwrap().unwrap().path();
        let endpoint = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        let status = serde_json::from_slice(&place.verb(&["status", "--json"]).stdout).unwrap();
        Self { place, child, endpoint, status }
    }

    fn key(&self) -> &str {
        self.endpoint["key"].as_str().unwrap()
    }

    fn address(&self) -> String {
        let url = self.endpoint["url"].as_str().unwrap();
        url.trim_start_matches("http://").trim_end_matches("/v1").to_owned()
    }

    fn run_dir(&self) -> PathBuf {
        PathBuf::from(self.status["run"]["run_dir"].as_str().unwrap())
    }

    /// Every process of the owner's that has to do with this run.
    fn pids(&self) -> Vec<String> {
        let pids = fs::read_dir("/proc").unwrap().flatten();
        let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let owned = |pid: &u32| fs::metadata(format!("/proc/{pid}")).is_ok_and(|meta| meta.uid() == OWNER);
        let descends = |pid: &u32| ancestors(*pid).contains(&self.child.id());
        pids.filter(|pid| owned(pid) && descends(pid)).map(|pid| pid.to_string()).collect()
    }

    /// The engines' own keys, which only the owner and root can read.
    fn engine_keys(&self) -> Vec<String> {
        let environ = |pid: &String| fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        let mut keys: Vec<String> = Vec::new();
        for variable in self
            .pids()
            .iter()
            .flat_map(|pid| environ(pid).split(|b| *b == 0).map(<[u8]>::to_vec).collect::<Vec<_>>())
        {
            let variable = String::from_utf8_lossy(&variable).into_owned();
            if let Some((_, key)) = variable.split_once('=').filter(|(name, _)| name.ends_with("_KEY")) {
                keys.push(key.to_owned());
            }
        }
        keys.sort();
        keys.dedup();
        keys
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

/// A real engine on a Unix socket, where `scripts/engines` put one that everybody can run.
fn llama(_place: &Place) -> String {
    let at = Path::new(env!("CARGO_MANIFEST_DIR")).join(".engines");
    let Ok(at) = at.canonicalize() else { return String::new() };
    let server = at.join("bin/llama-server");
    let runs = user(OWNER, &server, Path::new("/"))
        .arg("--help")
        .output()
        .is_ok_and(|output| output.status.success());
    if !runs {
        eprintln!("the real engine is left out: {} does not run for other users", server.display());
        return String::new();
    }
    format!(
        "[models.alpha]\nengine = \"llama-cpp\"\ncommand = [{server:?}]\nmodel = {:?}\ngpus = 0\n\
         args = [\"-c\", \"512\", \"-np\", \"1\", \"-t\", \"1\"]\n",
        at.join("models/alpha.gguf")
    )
}

fn ancestors(mut pid: u32) -> Vec<u32> {
    let mut all = Vec::new();
    while pid > 1 {
        all.push(pid);
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        pid = parent.unwrap_or(0);
    }
    all
}

/// All files below a directory.
fn below(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(below(&entry.path()));
        } else {
            all.push(entry.path());
        }
    }
    all
}

/// One run serves all of it: each attempt leaves it as it was, and the end of the test sees that it is.
#[test]
fn the_other_user_gets_nowhere() {
    if !two_users() {
        return;
    }
    let run = Run::start();
    the_endpoint_refuses(&run);
    engines_refuse(&run);
    files_are_closed(&run);
    processes_are_out_of_reach(&run);
    keys_are_nowhere_to_be_seen(&run);
    let answer = run.place.verb(&["status", "--json"]);
    let after: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let states = |status: &Value| {
        let models = status["models"].as_array().unwrap().clone();
        models.iter().map(|m| (m["name"].clone(), m["pid"].clone(), m["state"].clone())).collect::<Vec<_>>()
    };
    assert_eq!(states(&after), states(&run.status), "something of the run was changed\n{}", run.place.log());
}

fn the_endpoint_refuses(run: &Run) {
    // As long as the real one, so that only its bytes are wrong.
    let wrong: String = run.key().chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    let attempts = run.place.attempts(&["http", &run.address(), &wrong]);
    assert_eq!(attempts.len(), 15 * 15);
    for it in attempts {
        assert_eq!(it.outcome, "401", "{}", it.attempt);
    }
    let unix = run.endpoint["socket"].as_str().unwrap();
    for it in run.place.attempts(&["sockets", unix]) {
        assert_eq!(it.outcome, "Permission denied", "{}", it.attempt);
    }
    // The test itself is not refused: with the key the same request is answered.
    let client = reqwest::blocking::Client::builder().no_proxy().build().unwrap();
    let models =
        client.get(format!("http://{}/v1/models", run.address())).bearer_auth(run.key()).send().unwrap();
    assert_eq!(models.status(), 200);
}

fn engines_refuse(run: &Run) {
    // The engine with a key of its own listens on a port, and answers nobody without it.
    let listening = listening_ports(OWNER);
    let mut with_key = 0;
    for port in listening.iter().filter(|port| !run.address().ends_with(&format!(":{port}"))) {
        let attempts = run.place.attempts(&["http", &format!("127.0.0.1:{port}"), run.key()]);
        let statuses: Vec<_> = attempts.iter().map(|it| it.outcome.as_str()).collect();
        if statuses.iter().all(|status| *status == "401") {
            with_key += 1;
        } else {
            // The one without a key is open, which is what `validate` and the log say of it.
            assert!(run.place.log().contains("asks for no key"), "{}", run.place.log());
        }
    }
    assert_eq!((with_key, listening.len()), (1, 3), "the endpoint, one engine with a key, one without");
    let sockets: Vec<_> = below(&run.run_dir())
        .into_iter()
        .filter(|path| path.extension().is_some_and(|e| e == "sock"))
        .collect();
    for socket in &sockets {
        for it in run.place.attempts(&["sockets", socket.to_str().unwrap()]) {
            assert_eq!(it.outcome, "Permission denied", "{}", it.attempt);
        }
    }
    assert!(!sockets.is_empty());
}

fn files_are_closed(run: &Run) {
    let mut paths = below(&run.run_dir());
    assert!(paths.iter().any(|path| path.ends_with("key")) && paths.len() > 5, "{paths:?}");
    assert_eq!(fs::metadata(run.run_dir()).unwrap().permissions().mode() & 0o777, 0o700);
    paths.extend(below(&run.place.path("owner/.swapserve")));
    for path in &paths {
        for it in run.place.attempts(&["files", path.to_str().unwrap()]) {
            assert!(
                ["Permission denied", "Is a directory"].contains(&&*it.outcome),
                "{}: {}",
                it.attempt,
                it.outcome
            );
        }
        assert!(path.exists(), "{} was removed", path.display());
        let mode = fs::symlink_metadata(path).unwrap().permissions().mode();
        let private = mode & 0o077 == 0 || path.extension().is_some_and(|e| e == "sock");
        assert!(private, "{} has mode {mode:o}", path.display());
    }
}

fn processes_are_out_of_reach(run: &Run) {
    let pids = run.pids();
    assert!(pids.len() >= 5, "the daemon, two wardens and two engines: {pids:?}");
    let arguments: Vec<&str> = std::iter::once("processes").chain(pids.iter().map(String::as_str)).collect();
    let refused = ["Permission denied", "Operation not permitted"];
    for it in run.place.attempts(&arguments) {
        // `maps` and others of the kind open for everybody, and then read as nothing.
        let empty = it.outcome == "read 0 bytes";
        assert!(refused.contains(&&*it.outcome) || empty, "{}: {}", it.attempt, it.outcome);
    }
}

fn keys_are_nowhere_to_be_seen(run: &Run) {
    let mut keys = run.engine_keys();
    assert_eq!(keys.len(), 1 + usize::from(run.status["models"].as_array().unwrap().len() > 2), "{keys:?}");
    keys.push(run.key().to_owned());
    let pids = run.pids();
    let arguments: Vec<&str> =
        std::iter::once("command-lines").chain(pids.iter().map(String::as_str)).collect();
    let lines = run.place.attempts(&arguments);
    assert!(lines.iter().any(|it| it.outcome.contains("fake.py")));
    for key in &keys {
        assert!(key.len() >= 43, "a key of {} characters", key.len());
        assert!(lines.iter().all(|it| !it.outcome.contains(&**key)), "a key is on a command line");
        assert!(!run.place.log().contains(&**key), "a key is in the log, at the loudest");
        let status = run.place.verb(&["status", "--json"]);
        assert!(!String::from_utf8_lossy(&status.stdout).contains(&**key), "a key is in the status");
    }
    for pid in &pids {
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
        let soft = core.split_whitespace().nth(4).unwrap();
        assert!(["0", "1"].contains(&soft), "process {pid} could dump core: {core}");
    }
}

/// TCP ports on which this user listens.
fn listening_ports(owner: u32) -> Vec<u16> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let mut ports: Vec<u16> = table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let fields: Vec<_> = line.split_whitespace().collect();
            let port = u16::from_str_radix(fields[1].rsplit(':').next()?, 16).ok()?;
            (fields[3] == "0A" && fields[7].parse() == Ok(owner)).then_some(port)
        })
        .collect();
    ports.sort_unstable();
    ports
}

#[test]
fn a_key_is_good_for_one_run() {
    if !two_users() {
        return;
    }
    let keys: Vec<_> = (0..2)
        .map(|_| {
            let place = Place::new();
            let command = format!("python3 {} --port {{{{ port }}}}", place.path("fake.py").display());
            let config = format!("[models.one]\nengine = \"custom\"\ngpus = 0\ncommand = {command:?}\nenv = {{ ENGINE_KEY = \"{{{{ api_key }}}}\" }}\n");
            let file = place.path("owner/models.toml");
            fs::write(&file, config).unwrap();
            let mut run = user(OWNER, place.path("swapserve"), &place.path("owner"));
            run.env("CUDA_VISIBLE_DEVICES", "").env("TMPDIR", place.path("owner"));
            run.arg("run").arg("--config").arg(&file).args(["--", "sh", "-c", "echo $OPENAI_API_KEY"]);
            let output = run.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let key = String::from_utf8(output.stdout).unwrap().trim().to_owned();
            let left = below(&place.path("owner"));
            let holds = |path: &PathBuf| fs::read(path).is_ok_and(|text| memchr::memmem::find(&text, key.as_bytes()).is_some());
            assert!(!left.iter().any(holds), "a file with the key outlives the run");
            key
        })
        .collect();
    assert_ne!(keys[0], keys[1]);
}

#[test]
fn a_place_that_the_other_prepared_is_refused() {
    if !two_users() {
        return;
    }
    let place = Place::new();
    fs::write(
        place.path("owner/models.toml"),
        "[models.a]\nengine = \"custom\"\ngpus = 0\ncommand = \"sleep {{ port }}\"\n",
    )
    .unwrap();
    let theirs = place.path("other/run");
    fs::create_dir(&theirs).unwrap();
    fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
    std::os::unix::fs::chown(&theirs, Some(OTHER), Some(OTHER)).unwrap();
    let serve = |options: &[&str]| {
        let mut serve = user(OWNER, place.path("swapserve"), &place.path("owner"));
        serve
            .env("CUDA_VISIBLE_DEVICES", "")
            .arg("serve")
            .arg("--config")
            .arg(place.path("owner/models.toml"))
            .args(options);
        serve.output().unwrap()
    };
    let refused = serve(&["--run-dir", theirs.to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another user"), "{refused:?}");
    // An endpoint file of theirs would have the owner's clients send their prompts to them.
    let planted = place.path("other/endpoint.json");
    let text = r#"{"url":"http://127.0.0.1:1/v1","socket":null,"key":"k","job":null,"node":"x","pid":1,"started":1,"models":[]}"#;
    fs::write(&planted, text).unwrap();
    std::os::unix::fs::chown(&planted, Some(OTHER), Some(OTHER)).unwrap();
    let refused = place.verb(&["status", "--endpoint-file", planted.to_str().unwrap()]);
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to another user"), "{refused:?}");
}

#[test]
fn an_engine_that_is_held_is_neither_released_nor_counted_by_others() {
    if !two_users() {
        return;
    }
    let place = Place::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let hold = swapserve::engine::Hold::open().unwrap();
        hold.release();
        let name = hold.environment(false)[0].1.clone().into_string().unwrap();
        let name = name.trim_start_matches('@').to_owned();
        let tried = tokio::task::spawn_blocking(move || place.attempts(&["abstract", &name, "stream"]));
        let [it] = &tried.await.unwrap()[..] else { panic!("one attempt") };
        let refused = ["hung up", "Connection reset by peer", "Broken pipe"];
        assert!(refused.contains(&&*it.outcome), "{}: {}", it.attempt, it.outcome);
        assert!(!hold.was_asked());
    });
}

#[test]
fn the_memory_server_speaks_to_its_own_user_only() {
    if !two_users() {
        return;
    }
    let Some(bench) = gpu_bench::Bench::software(1) else { return };
    let place = Place::new();
    let setup = swapserve::gpu::park::setup::ParkSetup::new(64 << 20, Default::default()).unwrap();
    let name = setup.engine_environment().1.into_string().unwrap();
    let name = name.trim_start_matches('@').to_owned();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let command = swapserve::gpu::launch::ServerCommand { park: Some(setup), ..bench.server_command() };
        let server = swapserve::gpu::GpuClient::start(gpu_bench::spawner(), command);
        server.describe().await.unwrap();
        for _ in 0..3 {
            let [it] = &place.attempts(&["abstract", &name, "seqpacket"])[..] else { panic!("one attempt") };
            // Closed before what was sent is read: an orderly end, or a reset.
            let refused = ["hung up", "Connection reset by peer", "Broken pipe"];
            assert!(refused.contains(&&*it.outcome), "{}: {}", it.attempt, it.outcome);
        }
        server.ping().await.unwrap();
    });
}

//! What is around a run: disks, directories, logs, file systems, clocks.

use crate::{
    case::{Case, another_pid, pid, signal},
    service::{LONGEST, Service, config, eventually, fake, swapserve},
};
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::signal::Signal,
};
use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    path::{Path, PathBuf},
    process::Stdio,
    time::Instant,
};

fn two(victim: &str) -> String {
    format!(
        "[scheduler]\nrunning_slots = 8\n{}{}",
        fake("victim", victim, "hang_timeout = \"2s\""),
        fake("other", "", "")
    )
}

/// A small file system, where this can be made.
struct Disk(tempfile::TempDir);

impl Disk {
    fn new(options: &str) -> Option<Self> {
        let dir = tempfile::Builder::new().prefix("sd").tempdir().unwrap();
        match mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options)) {
            Ok(()) => Some(Self(dir)),
            Err(error) => {
                eprintln!("skipped: no file system can be mounted: {error}");
                None
            }
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// The run directory's disk has no room, or no inode, left.
fn full(fault: &'static str, options: &str, fill: impl Fn(&Path) -> Vec<PathBuf>) {
    let Some(disk) = Disk::new(options) else { return };
    let run_dir = disk.0.path().join("run");
    let service = Service::start(&two(""), &["--run-dir", run_dir.to_str().unwrap()]);
    let case = Case::begin(service, "run directory", fault, "resident");
    let filled = fill(disk.0.path());
    let first = pid(&case.service, "victim").unwrap();
    case.strike(|_| signal(first, Signal::SIGKILL));
    // The engine cannot be started: that has a reason, and no other model suffers.
    eventually("the start fails with a reason", || {
        let log = case.service.log();
        log.contains("No space left on device") || case.service.model("victim")["state"] == "resident"
    });
    filled.iter().for_each(|path| fs::remove_file(path).unwrap());
    another_pid(&case.service, "victim", first);
    case.recovers("that start fails, with the reason; tried again");
}

#[test]
fn a_full_disk() {
    full("disk full", "size=1m", |disk| {
        let path = disk.join("fill");
        let mut file = File::create(&path).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        vec![path]
    });
}

#[test]
fn no_inode_left() {
    full("no inode left", "size=8m,nr_inodes=40", |disk| {
        (0..).map(|n| disk.join(format!("fill{n}"))).take_while(|path| File::create(path).is_ok()).collect()
    });
}

#[test]
fn the_run_directory_is_deleted() {
    let mut text = two("");
    // One on a Unix socket in it as well: nobody can connect to that any more.
    let script = "import http.server, socketserver, sys\n\
        class S(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):\n  def get_request(self):\n    return self.socket.accept()[0], ('x', 0)\n\
        class H(http.server.BaseHTTPRequestHandler):\n  def do_GET(self): self.reply(b'{}')\n  def log_message(self, *a): pass\n\
        \x20 def do_POST(self):\n    self.rfile.read(int(self.headers['content-length'])); self.reply(b'{\"choices\":[{\"message\":{\"content\":\"unix\"}}]}')\n\
        \x20 def reply(self, data):\n    self.send_response(200); self.send_header('content-length', str(len(data))); self.end_headers(); self.wfile.write(data)\n\
        S(sys.argv[1], H).serve_forever()\n";
    let files = tempfile::tempdir().unwrap();
    let server = files.path().join("unix.py");
    fs::write(&server, script).unwrap();
    text += &format!(
        "[models.unix]\nengine = \"custom\"\ngpus = 0\nhang_timeout = \"2s\"\ncommand = \"python3 {} {{{{ socket }}}}\"\n",
        server.display()
    );
    let service = Service::start(&text, &[]);
    let (first, unix) = (pid(&service, "victim").unwrap(), pid(&service, "unix").unwrap());
    let case = Case::begin(service, "run directory", "deleted", "resident");
    case.strike(|service| fs::remove_dir_all(service.dir.path().join("run")).unwrap());
    another_pid(&case.service, "unix", unix);
    assert_eq!(case.service.answer("unix"), "unix");
    assert_eq!(pid(&case.service, "victim"), Some(first), "an engine on a port is not concerned");
    case.recovers("made anew; engines on sockets started again");
}

#[test]
fn an_engine_that_logs_without_end() {
    let dir = tempfile::tempdir().unwrap();
    let switch = dir.path().join("flood");
    let service = Service::start(&two(&format!("--flood {}", switch.display())), &[]);
    let log = service.dir.path().join("run/log/victim.log");
    let case = Case::begin(service, "engine's log", "grows endlessly", "resident");
    case.strike(|_| fs::write(&switch, "").unwrap());
    eventually("the log is cut", || log.with_extension("log.1").exists());
    fs::remove_file(&switch).unwrap();
    let size = |path: &Path| fs::metadata(path).map_or(0, |meta| meta.len());
    eventually("it is small again", || size(&log) < 64 << 20);
    assert!(size(&log.with_extension("log.1")) <= 8 << 20);
    case.recovers("cut at 64 MiB, its last 8 MiB kept");
}

/// Stands in for a network file system that does not answer: what is written to it is not taken.
struct Stalled {
    path: PathBuf,
    reader: Option<File>,
}

impl Stalled {
    fn new(dir: &Path, name: &str) -> Self {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // For reading and writing, so that opening it waits for nobody (fifo(7)).
        let reader = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        Self { path, reader: Some(reader) }
    }

    /// It answers again: all is read from here on.
    fn answer(&mut self) {
        let mut reader = self.reader.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut reader, &mut std::io::sink()));
    }
}

#[test]
fn a_file_system_that_stalls() {
    let (dir, file) = config(&two(""));
    let (mut journal, mut log) = (Stalled::new(dir.path(), "journal"), Stalled::new(dir.path(), "stderr"));
    let endpoint = dir.path().join("endpoint.json");
    let mut serve = swapserve();
    serve.arg("serve").arg("-vvv").arg("--config").arg(file).arg("--endpoint-file").arg(&endpoint);
    serve.arg("--journal").arg(&journal.path).arg("--quiet");
    serve.env("SWAPSERVE_LOG", "trace").stdin(Stdio::null()).stdout(Stdio::null());
    serve.stderr(OpenOptions::new().write(true).open(&log.path).unwrap());
    let mut child = serve.spawn().unwrap();
    let verb = |arguments: &[&str]| {
        swapserve().args(arguments).arg("--endpoint-file").arg(&endpoint).output().unwrap()
    };
    eventually("it publishes its endpoint", || endpoint.exists() || child.try_wait().unwrap().is_some());
    assert!(verb(&["wait", "--timeout", "2m"]).status.success());
    let found: serde_json::Value = serde_json::from_slice(&fs::read(&endpoint).unwrap()).unwrap();
    let client = reqwest::blocking::Client::builder().no_proxy().timeout(LONGEST).build().unwrap();
    let begun = Instant::now();
    // Far more lines than a pipe holds, of both kinds.
    for _ in 0..1500 {
        let request = client.post(format!("{}/chat/completions", found["url"].as_str().unwrap()));
        let request = request.bearer_auth(found["key"].as_str().unwrap());
        let answer = request.json(&serde_json::json!({ "model": "other", "messages": [] })).send().unwrap();
        assert_eq!(answer.status(), 200);
    }
    let seconds = begun.elapsed().as_secs_f64();
    assert!(verb(&["stop"]).status.success());
    let ended = child.wait().unwrap();
    assert!(ended.success(), "{ended}");
    assert!(!endpoint.exists(), "the endpoint file is left");
    journal.answer();
    log.answer();
    println!(
        "{:28} {:14} {:14} no request waits; the run ends in order: 1500 requests in {seconds:.1} s",
        "log and journal", "stall", "resident"
    );
    crate::case::row(&serde_json::json!({
        "engine": "log and journal", "fault": "file system stalls", "state": "resident",
        "outcome": "no request waits; the run ends in order", "requests_elsewhere": 1500, "requests_lost_elsewhere": 0,
        "seconds": (seconds * 100.0).round() / 100.0,
    }));
}

/// The clock on the wall may jump; nothing but these may look at it, and none of them for a deadline of its own.
#[test]
fn nothing_is_timed_by_the_clock_on_the_wall() {
    const MAY: [(&str, &str); 5] = [
        ("job/slurm.rs", "the job's end, as Slurm says it"),
        ("job/site.rs", "the same; asked for again each minute, and turned into a span at once"),
        ("daemon/session.rs", "when the run began, for people; the job's end as a span"),
        ("swap/sleep/sign.rs", "TensorRT-LLM's signatures carry it"),
        ("observe/", "times in the log"),
    ];
    let mut found = Vec::new();
    look(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
    found.retain(|path| !MAY.iter().any(|(may, _)| path.contains(may)));
    assert_eq!(found, Vec::<String>::new(), "SystemTime is for people; use Instant for deadlines");
}

fn look(dir: &Path, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            look(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs")
            && fs::read_to_string(&path).unwrap().contains("SystemTime")
        {
            found.push(path.display().to_string());
        }
    }
}

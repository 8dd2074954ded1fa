//! The processes under measurement: started, known by pid, killed on drop.

use std::{
    fs,
    io::{BufRead, BufReader},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// A server process.
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    child: Child,
    _files: Option<tempfile::TempDir>,
}

impl Proxy {
    /// This program in another role; it prints its address.
    pub fn own(role: &str, arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("this program has a path");
        let mut child = Command::new(program)
            .arg(role)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program can be started again");
        let mut line = String::new();
        let stdout = child.stdout.take().expect("it is piped");
        BufReader::new(stdout).read_line(&mut line).expect("it prints its address");
        Self { address: line.trim().parse().expect("an address"), child, _files: None }
    }

    /// nginx with one process, no log, and connections to the upstream kept open; `None` where there is no nginx.
    pub fn nginx(upstream: SocketAddr) -> Option<Self> {
        let files = tempfile::tempdir().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("a port is free");
        let root = files.path().display();
        let config = format!(
            "daemon off; master_process off; worker_processes 1; pid {root}/pid; error_log {root}/error.log;
             events {{ worker_connections 8192; }}
             http {{
               access_log off; tcp_nodelay on; keepalive_requests 1000000000; client_max_body_size 64m;
               client_body_temp_path {root}/body; proxy_temp_path {root}/proxy; fastcgi_temp_path {root}/f;
               uwsgi_temp_path {root}/u; scgi_temp_path {root}/s;
               upstream engine {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}
               server {{ listen {free}; location / {{
                 proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}
             }}"
        );
        let path = files.path().join("nginx.conf");
        fs::write(&path, config).expect("a file in a temporary directory");
        let child = Command::new("nginx").arg("-c").arg(&path).stderr(Stdio::null()).spawn().ok()?;
        let nginx = Self { address: free, child, _files: Some(files) };
        let begun = Instant::now();
        while TcpStream::connect(free).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(10), "nginx does not start");
            std::thread::sleep(Duration::from_millis(10));
        }
        Some(nginx)
    }

    /// Processor time taken so far.
    pub fn cpu(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).expect("it runs");
        // Fields after the name, which may hold spaces: state is the 3rd of all, utime and stime the 14th and 15th.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|f| f.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10) // a tick is 1/100 s on Linux
    }

    /// Resident memory, bytes.
    pub fn memory(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("it runs");
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).expect("the kernel says VmRSS");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("kilobytes") << 10
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

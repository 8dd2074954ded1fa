//! Two users of one node: one who runs swapserve, and one who would like to know, use or end it.

use serde::Deserialize;
use std::{
    fs,
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

/// Ids that no package gives out (Debian policy 9.2.2: 60000 to 64999 are given out by the project, and these are not).
pub const OWNER: u32 = 64_321;
pub const OTHER: u32 = 64_322;

/// What came of one attempt.
#[derive(Debug, Deserialize)]
pub struct Attempt {
    pub attempt: String,
    pub outcome: String,
}

/// Whether tests can be two users here, with a word about it if not.
pub fn two_users() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can be two users");
    }
    root
}

/// A command run by one of the two: none of root's groups (std drops them with the id), none of the test's surroundings.
pub fn user(id: u32, program: impl AsRef<std::ffi::OsStr>, home: &Path) -> Command {
    let mut command = Command::new(program);
    command.uid(id).gid(id).env_clear().env("PATH", "/usr/bin:/bin").env("HOME", home).current_dir("/");
    // SAFETY: one system call between fork and exec.
    unsafe {
        // Two people have sessions of their own; in one session each may send the other CONT (kill(2)).
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    command
}

/// A place where the owner has a home that is open to nobody else, and a copy of the programs that anybody can run.
pub struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("sn").tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let place = Self { dir };
        for (from, to) in [
            (env!("CARGO_BIN_EXE_swapserve"), "swapserve"),
            (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/engines/fake.py"), "fake.py"),
            (concat!(env!("CARGO_MANIFEST_DIR"), "/tests/shared_node/attempts.py"), "attempts.py"),
        ] {
            // A link costs nothing; across file systems it is a copy.
            let to = place.path(to);
            fs::hard_link(from, &to).or_else(|_| fs::copy(from, &to).map(drop)).unwrap();
        }
        for (name, id) in [("owner", OWNER), ("other", OTHER)] {
            fs::create_dir(place.path(name)).unwrap();
            fs::set_permissions(place.path(name), fs::Permissions::from_mode(0o755)).unwrap();
            std::os::unix::fs::chown(place.path(name), Some(id), Some(id)).unwrap();
        }
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Starts swapserve as the owner, with this config.
    pub fn serve(&self, config: &str, options: &[&str]) -> Child {
        let file = self.path("owner/models.toml");
        fs::write(&file, config).unwrap();
        let log = fs::File::create(self.path("owner.log")).unwrap();
        let mut serve = user(OWNER, self.path("swapserve"), &self.path("owner"));
        serve.env("CUDA_VISIBLE_DEVICES", "").env("TMPDIR", self.path("owner"));
        serve.arg("serve").arg("--config").arg(file).args(options);
        serve.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        serve.spawn().unwrap()
    }

    /// Runs one of the verbs as the owner.
    pub fn verb(&self, arguments: &[&str]) -> std::process::Output {
        user(OWNER, self.path("swapserve"), &self.path("owner")).args(arguments).output().unwrap()
    }

    /// What the daemon has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("owner.log")).unwrap_or_default()
    }

    /// Has the other user try something.
    pub fn attempts(&self, arguments: &[&str]) -> Vec<Attempt> {
        self.attempts_of(OTHER, arguments)
    }

    /// Has one of the two try it.
    pub fn attempts_of(&self, who: u32, arguments: &[&str]) -> Vec<Attempt> {
        let mut tried = user(who, "python3", &self.path("other"));
        let output = tried.arg(self.path("attempts.py")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let lines = String::from_utf8(output.stdout).unwrap();
        let attempts: Vec<Attempt> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(!attempts.is_empty());
        attempts
    }
}

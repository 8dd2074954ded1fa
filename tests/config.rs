//! What a user sees of a wrong config: each file of `config/bad` has its message in `config/snapshots`.
//!
//! A first line `# job: gpus=80GiB,80GiB host=64GiB` is the job it is checked against; without one the job is unknown.

use std::{
    collections::BTreeSet,
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};
use swapserve::{
    config::{self, Code, Context, Limits, Mistakes, Plan},
    units::Bytes,
};

/// Where the configs say they are: relative paths begin there.
const FILE: &str = "/job/models.toml";

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config").join(name)
}

fn parse(text: &str, context: &Context) -> Result<Plan, Mistakes> {
    config::parse(Path::new(FILE), text, context)
}

fn mistakes(text: &str) -> Mistakes {
    parse(text, &Context::default()).expect_err("it has mistakes")
}

/// The job of a config's first line.
fn job(text: &str) -> Option<Limits> {
    let line = text.lines().next()?.strip_prefix("# job:")?;
    let size = |text: &str| Bytes(text.parse::<bytesize::ByteSize>().unwrap().as_u64());
    let value = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
    Some(Limits {
        gpus: value("gpus=").map(|list| list.split(',').map(size).collect()).unwrap_or_default(),
        host: value("host=").map(size),
        cores: 8,
    })
}

#[test]
fn every_bad_config_has_its_message() {
    let mut seen = BTreeSet::new();
    let mut files: Vec<_> = fs::read_dir(folder("bad")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    for file in files {
        let name = file.file_stem().unwrap().to_str().unwrap();
        let text = fs::read_to_string(&file).unwrap();
        let context = Context { limits: job(&text), ..Context::default() };
        let Err(mistakes) = parse(&text, &context) else { panic!("{name} has no mistake") };
        seen.extend(mistakes.list().iter().map(|m| m.code.name()));
        insta::with_settings!({ snapshot_path => folder("snapshots"), prepend_module_to_snapshot => false, omit_expression => true }, {
            insta::assert_snapshot!(name, mistakes.render(false));
        });
    }
    // These need a file that is not there, is not text, or a port that is taken: tests of their own.
    seen.extend([Code::Unreadable, Code::NotText].map(Code::name));
    let all: BTreeSet<_> = Code::ALL.iter().map(|code| code.name()).collect();
    assert_eq!(seen, all, "each code of mistakes is shown by a config of tests/config/bad");
}

#[test]
fn mistakes_are_also_json() {
    let found = serde_json::to_value(mistakes("[models.chat]\nengine = \"vlm\"\n")).unwrap();
    assert_eq!(found.as_array().unwrap().len(), 1);
    assert_eq!(found[0]["code"], "unknown-engine");
    assert_eq!(found[0]["file"], FILE);
    assert_eq!((&found[0]["line"], &found[0]["column"]), (&2.into(), &10.into()));
    assert_eq!(found[0]["value"], "\"vlm\"");
    assert!(found[0]["help"].as_str().unwrap().starts_with("did you mean \"vllm\"?"));
}

#[test]
fn columns_count_characters() {
    let found = serde_json::to_value(mistakes("[models]\n\"é\" = { engine = \"x\" }\n")).unwrap();
    let place = found.as_array().unwrap().iter().find(|m| m["code"] == "unknown-engine").unwrap();
    assert_eq!((&place["line"], &place["column"]), (&2.into(), &18.into()));
}

#[test]
fn a_port_that_is_taken() {
    let holder = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = holder.local_addr().unwrap().port();
    let model = "[models.a]\nengine = \"custom\"\ncommand = [\"sh\", \"{{ port }}\"]\n";
    let text = format!("{model}[router]\nport = {port}\n");
    let found = mistakes(&text);
    assert_eq!(found.list().len(), 1);
    assert_eq!(found.list()[0].code, Code::PortUnavailable);
    assert_eq!(found.list()[0].message, format!("port {port} is taken by another program on this node"));
    assert_eq!(&text[found.list()[0].places[0].0.clone()], port.to_string());
    // The command line's port is the one that counts.
    let free = Context { port: Some(0), ..Context::default() };
    assert_eq!(parse(&text, &free).unwrap().router.port, 0);
    let taken = Context { port: Some(port), ..Context::default() };
    let found = parse(model, &taken).unwrap_err();
    assert!(found.list()[0].places.is_empty(), "it does not stand in the file");
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("models.toml"), "").unwrap();
    let missing = config::load(&dir.path().join("model.toml"), &Context::default()).unwrap_err();
    assert_eq!(missing.list()[0].code, Code::Unreadable);
    assert!(
        missing.list()[0]
            .help
            .contains(&format!("did you mean {}", dir.path().join("models.toml").display()))
    );

    let directory = config::load(dir.path(), &Context::default()).unwrap_err();
    assert!(directory.unreadable());
    assert_eq!(directory.list()[0].help, "name a file in it");

    let latin1 = dir.path().join("latin1.toml");
    fs::write(&latin1, b"# caf\xe9\n[models.a]\n").unwrap();
    let not_text = config::load(&latin1, &Context::default()).unwrap_err();
    assert_eq!(not_text.list()[0].code, Code::NotText);
    assert_eq!(serde_json::to_value(&not_text).unwrap()[0]["column"], 6);

    let secret = dir.path().join("secret.toml");
    fs::write(&secret, "").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o000)).unwrap();
    // Root reads it all the same; then it is an empty config.
    let found = config::load(&secret, &Context::default()).unwrap_err();
    assert!(matches!(found.list()[0].code, Code::Unreadable | Code::NoModels));
}

#[test]
fn a_note_of_git_lfs_is_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let weights = dir.path().join("model.gguf");
    fs::write(&weights, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap();
    let text = format!(
        "[models.a]\nengine = \"llama-cpp\"\ncommand = [\"sh\"]\nmodel = \"{}\"\n",
        weights.display()
    );
    let found = mistakes(&text);
    assert_eq!(
        (found.list()[0].code, found.list()[0].help.as_str()),
        (Code::MissingPath, "fetch them: git lfs pull")
    );
    fs::write(&weights, "GGUF").unwrap();
    parse(&text, &Context::default()).unwrap();
}

/// A config with every section, for cutting and mixing.
const WHOLE: &str = r#"
[defaults]
engine = "vllm"
env = { A = "é", B = "{{ port }}" }

[models.chat]
command = "sh -c '{{ model }}'"
model = "/bin/sh"
gpu_memory = "24GiB"
swap = ["park", "sleep", "restart"]
aliases = ["gpt-4", "ä"]
hooks = { out = ["sh"], in = ["sh"] }

[models."a/b"]
engine = "custom"
command = ["sh", "{{ socket }}"]
start_timeout = "1h 30m"

[router]
host = "::1"
port = 0

[memory]
gpu_budget = "1GB"
"#;

proptest::proptest! {
    /// Whatever is written, each mistake has a place in the text and can be shown.
    #[test]
    fn no_text_is_too_odd(
        cuts in proptest::collection::vec((0..WHOLE.len(), 0..12_usize, "[a-z\\[\\]{}=\"'.,#$~ é\\n0-9]{0,4}"), 1..4)
    ) {
        let mut text = WHOLE.to_owned();
        for (at, length, put) in cuts {
            let end = text.len().min(at + length);
            if text.is_char_boundary(at.min(end)) && text.is_char_boundary(end) {
                text.replace_range(at.min(end)..end, &put);
            }
        }
        if let Err(mistakes) = parse(&text, &Context::default()) {
            proptest::prop_assert!(!mistakes.list().is_empty());
            for (span, _) in mistakes.list().iter().flat_map(|m| &m.places) {
                proptest::prop_assert!(text.get(span.clone()).is_some(), "{span:?} of {text:?}");
            }
            proptest::prop_assert!(mistakes.render(true).contains("nothing was started"));
            serde_json::to_string(&mistakes).unwrap();
        }
    }
}

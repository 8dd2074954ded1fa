//! `models.toml`: read, or refused with messages whose places lie in the text.

use std::path::Path;
use swapserve::{
    config::{Context, Limits, TemplateValues, parse},
    units::Bytes,
};

pub fn run(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else { return };
    let limits = Limits { gpus: vec![Bytes::gib(80); 2], host: Some(Bytes::gib(256)), cores: 16 };
    let context = Context { limits: Some(limits), ..Context::default() };
    match parse(Path::new("/nowhere/models.toml"), text, &context) {
        Ok(plan) => {
            for model in &plan.models {
                let values = TemplateValues {
                    port: (!model.unix_socket).then_some(40_000),
                    socket: model.unix_socket.then(|| "/run/engine.sock".into()),
                    api_key: "key".to_owned(),
                    gpu_memory_fraction: model.gpu_memory.map(|_| 0.5),
                    threads: 1,
                    rundir: "/run/engine".into(),
                };
                model.render(&values).expect("what was checked can be filled");
                assert_eq!(plan.find(&model.name).map(|id| &plan.model(id).name), Some(&model.name));
            }
            serde_json::to_string(&plan).expect("a plan serialises");
        }
        Err(mistakes) => {
            assert!(!mistakes.list().is_empty());
            let shown = mistakes.render(false);
            assert!(!shown.is_empty());
        }
    }
}

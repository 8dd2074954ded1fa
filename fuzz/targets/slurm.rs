//! Slurm's environment, and what its tools print. Lines `NAME=VALUE` are variables; the whole is also read as the output of
//! each tool, and each value as a list of numbers.

use swapserve::{
    job::{Env, Gpus, Slurm, site},
    topology::Mask,
};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let variables: Vec<_> = text.lines().filter_map(|line| line.split_once('=')).collect();
    for (_, value) in &variables {
        if let Ok(mask) = value.parse::<Mask>() {
            assert_eq!(mask.to_string().parse::<Mask>().as_ref(), Ok(&mask));
            assert_eq!(mask.iter().count(), mask.len());
        }
    }
    let env: Env = variables.into_iter().collect();
    // A refusal names the variable.
    if let Err(error) = Slurm::read(&env) {
        assert!(error.to_string().starts_with("SLURM_"), "{error}");
    }
    let gpus = Gpus::read(&env);
    assert!(gpus.host.len() <= 4096, "more GPUs than any node has");
    site::parse_rules(&text);
    text.lines().for_each(|line| assert!(site::parse_left(line) != Some(std::time::Duration::MAX)));
}

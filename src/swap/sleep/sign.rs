//! The signature that TensorRT-LLM wants on requests that control its memory: HMAC-SHA256 under the run's own secret over
//! a domain line, method, path, time, a nonce and the body (`tensorrt_llm/serve/runtime_control_auth.py`).

use hmac::{Hmac, Mac};
use sha2::Sha256;
use std::time::{SystemTime, UNIX_EPOCH};

/// The headers that sign this request now.
pub(super) fn headers(
    secret: &str,
    method: &str,
    path: &str,
    body: &[u8],
) -> Result<[(&'static str, String); 3], getrandom::Error> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let mut nonce = [0u8; 16];
    getrandom::fill(&mut nonce)?;
    Ok(signed(secret, method, path, body, now, &hexadecimal(&nonce)))
}

fn signed(
    secret: &str,
    method: &str,
    path: &str,
    body: &[u8],
    now: u64,
    nonce: &str,
) -> [(&'static str, String); 3] {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes a key of any length");
    mac.update(format!("trtllm-runtime-control-v1\n{method}\n{path}\n{now}\n{nonce}\n").as_bytes());
    mac.update(body);
    [
        ("x-trtllm-runtime-control-auth", format!("sha256={}", hexadecimal(&mac.finalize().into_bytes()))),
        ("x-trtllm-runtime-control-timestamp", now.to_string()),
        ("x-trtllm-runtime-control-nonce", nonce.to_owned()),
    ]
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_the_one_that_pythons_hmac_makes() {
        let headers = signed("k", "POST", "/release_memory", b"{}", 1_700_000_000, &"0".repeat(32));
        assert_eq!(headers[0].1, "sha256=9c426853e2448bc29595a07c99757f9045d63701a32e7d423c46fb78d9ccf352");
    }
}

//! What a request may carry its model in, and the answers where it can't be read.

use crate::{
    bed::{Setup, run, run_with},
    engine::json,
};

/// A form with the field `model` after a file.
fn form(path: &str, model: &str) -> String {
    let body = format!(
        "--bound\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
         Content-Type: audio/wav\r\n\r\nRIFF\r\n--boun\r\n\r\n\
         --bound\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--bound--\r\n"
    );
    let length = body.len();
    format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer test-key\r\n\
         content-type: multipart/form-data; boundary=bound\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

#[test]
fn a_form_is_routed_on_its_field() {
    let setup = Setup { entry: |entry| entry.alias = "whisper-1", ..Setup::default() };
    run_with(setup, vec![vec![json(200, "{}")]], async |mut bed| {
        let mut client = bed.client().await;
        client.send(form("/v1/audio/transcriptions", "whisper-1")).await;
        let answer = client.answer().await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let seen = bed.engine.request().await;
        assert!(seen.body.contains("name=\"model\"\r\n\r\nchat\r\n--bound--"), "{}", seen.body);
        assert!(seen.body.contains("RIFF\r\n--boun\r\n"));
        assert_eq!(seen.header("content-type"), Some("multipart/form-data; boundary=bound"));
    });
}

#[test]
fn a_form_where_json_is_due_is_a_400() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let mut client = bed.client().await;
        client.send(form("/v1/chat/completions", "chat")).await;
        assert_eq!(client.answer().await.status, 400);
    });
}

#[test]
fn bodies_that_cannot_be_routed_are_refused_with_the_reason() {
    run(vec![vec![json(200, "{}")]], async |bed| {
        let mut client = bed.client().await;
        for (body, status, code) in [
            ("", 400, "invalid_request"),
            ("{", 400, "invalid_request"),
            ("{}", 400, "invalid_request"),
            (r#"{"model":["chat"]}"#, 400, "invalid_request"),
            (r#"{"model":"chat","model":"chat"}"#, 400, "invalid_request"),
            (r#"{"model":"gpt-5"}"#, 404, "model_not_found"),
            (r#"{"model":""}"#, 404, "model_not_found"),
        ] {
            let answer = client.post("/v1/chat/completions", body).await;
            assert_eq!((answer.status, &*answer.code()), (status, code), "{body}");
        }
    });
}

#[test]
fn a_large_body_in_many_pieces_arrives_whole() {
    run(vec![vec![json(200, "{}")]], async |mut bed| {
        let body = format!(r#"{{"x":"{}","model":"chat"}}"#, "0123456789abcdef".repeat(50_000));
        let answer = bed.client().await.post("/v1/embeddings", &body).await;
        assert_eq!(answer.status, 200);
        assert_eq!(bed.engine.request().await.body, body);
    });
}

#[test]
fn a_large_answer_arrives_whole() {
    let body = "0123456789abcdef".repeat(100_000);
    run(vec![vec![json(200, &body)]], async |bed| {
        let answer = bed.client().await.post("/v1/embeddings", r#"{"model":"chat"}"#).await;
        assert_eq!(answer.body.len(), body.len());
        assert!(answer.body == body);
    });
}

#!/usr/bin/env python3
"""What a program that uses the openai client sees of a server, as one JSON object on stdout.

Run once against an engine and once against the router in front of it: the two objects must be equal. Whatever may
differ from one request to the next (ids, times) is left out; exceptions are results like any other.

usage: conformance.py {chat|embeddings|refusals|queue} --base-url URL --key KEY --model NAME [--engine-url URL]
"""

import argparse
import asyncio
import json
import sys
import time
import urllib.request

import openai

VOLATILE = {"id", "created", "created_at", "completed_at", "timings", "system_fingerprint"}
VOLATILE |= {"prompt_tokens_details", "input_tokens_details"}  # how much was cached, which the run before decides
PROMPT = [{"role": "user", "content": "Count, please."}]
CHECKS = {"chat": [], "embeddings": [], "refusals": [], "queue": []}


def check(suite):
    def add(function):
        CHECKS[suite].append(function)
        return function

    return add


def plain(value):
    """A result without what may differ."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if k not in VOLATILE}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    return round(value, 5) if isinstance(value, float) else value


def outcome(function, *arguments):
    try:
        return plain(function(*arguments))
    except openai.APIStatusError as e:
        return {"raised": type(e).__name__, "status": e.status_code, "body": plain(e.body)}
    except openai.APIError as e:
        return {"raised": type(e).__name__}


class Server:
    def __init__(self, a):
        self.model, self.engine_url, self.base_url, self.key = a.model, a.engine_url, a.base_url, a.key
        self.client = self.with_options()

    def with_options(self, **options):
        # The client's own two retries stay on: engines close idle connections just as a request arrives on them.
        return openai.OpenAI(**{"base_url": self.base_url, "api_key": self.key, **options})

    def chat(self, client=None, **options):
        options = {"model": self.model, "messages": PROMPT, "max_tokens": 24, "temperature": 0, **options}
        return (client or self.client).chat.completions.create(**options)

    def engine_is_idle(self):
        """Whether the engine itself, asked directly, stops working within some seconds."""
        request = urllib.request.Request(self.engine_url + "/slots", headers={"Authorization": "Bearer engine-key"})
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with urllib.request.urlopen(request) as answer:
                if not any(slot["is_processing"] for slot in json.load(answer)):
                    return True
            time.sleep(0.02)
        return False


@check("chat")
def chat(s):
    return s.chat()


@check("chat")
def chat_stream(s):
    return list(s.chat(stream=True, stream_options={"include_usage": True}))


@check("chat")
def chat_stream_raw_bytes(s):
    create = s.client.chat.completions.with_streaming_response.create
    with create(model=s.model, messages=PROMPT, max_tokens=8, temperature=0, stream=True) as answer:
        text = list(answer.iter_lines())
    return {
        "type": answer.headers["content-type"],
        "shape": [line if line in ("", "data: [DONE]") else line.partition(":")[0] for line in text],
    }


@check("chat")
def chat_logprobs_and_choices(s):
    return s.chat(logprobs=True, top_logprobs=2, max_tokens=4)


@check("chat")
def completions(s):
    return s.client.completions.create(model=s.model, prompt="Hello", max_tokens=16, temperature=0)


@check("chat")
def completions_stream(s):
    return list(s.client.completions.create(model=s.model, prompt="Hello", max_tokens=16, temperature=0, stream=True))


@check("chat")
def responses(s):
    return s.client.responses.create(model=s.model, input="Count, please.", max_output_tokens=16, temperature=0)


@check("chat")
def long_unicode_body(s):
    return s.chat(messages=[{"role": "user", "content": "zählen \u2028 \U0001f600 " * 10}], max_tokens=4)


@check("chat")
def many_at_once(s):
    async def ask():
        client = openai.AsyncOpenAI(base_url=s.base_url, api_key=s.key)
        one = lambda: client.chat.completions.create(model=s.model, messages=PROMPT, max_tokens=16, temperature=0)
        return [answer.choices[0].message.content for answer in await asyncio.gather(*(one() for _ in range(8)))]

    return asyncio.run(ask())


@check("chat")
def messages_are_missing(s):
    return s.client.post("/chat/completions", cast_to=object, body={"model": s.model})


@check("chat")
def a_parameter_has_the_wrong_type(s):
    return s.chat(temperature="hot")


@check("chat")
def the_prompt_is_too_long(s):
    return s.chat(messages=[{"role": "user", "content": "one two three " * 8000}])


@check("chat")
def embeddings_of_a_chat_model(s):
    return s.client.embeddings.create(model=s.model, input="hello")


@check("chat")
def wrong_key(s):
    answer = outcome(s.chat, s.with_options(api_key="not-the-key"))
    return {k: answer[k] for k in ("raised", "status")}


@check("chat")
def cancelled_before_headers(s):
    client = s.with_options(timeout=0.3, max_retries=0)
    return outcome(lambda: s.chat(client, max_tokens=3000)), s.engine_is_idle()


@check("chat")
def cancelled_in_mid_stream(s):
    seen = []
    with s.chat(stream=True, max_tokens=3000) as stream:
        for chunk in stream:
            seen.append(chunk.choices[0].delta.content)
            if len(seen) == 5:
                break
    return seen, s.engine_is_idle(), s.chat(max_tokens=4)


@check("embeddings")
def embeddings(s):
    answer = s.client.embeddings.create(model=s.model, input=["query: a cat", "query: ein Hund"])
    return {"size": [len(d.embedding) for d in answer.data], "data": [d.embedding[:8] for d in answer.data]}


@check("embeddings")
def embeddings_as_floats(s):
    answer = s.client.embeddings.create(model=s.model, input="query: a cat", encoding_format="float")
    return answer.data[0].embedding[:8]


@check("embeddings")
def embeddings_of_nothing(s):
    return s.client.post("/embeddings", cast_to=object, body={"model": s.model})


# What only the router answers: the engines here serve any name and have no limit.
@check("refusals")
def unknown_model(s):
    return s.chat(model="no-such-model")


@check("refusals")
def a_body_that_is_no_json(s):
    json_type = {"headers": {"content-type": "application/json"}}
    return s.client.post("/chat/completions", cast_to=object, content=b"{", options=json_type)


@check("refusals")
def a_body_that_is_too_large(s):
    return s.chat(messages=[{"role": "user", "content": "x" * (3 << 20)}])


@check("refusals")
def an_unknown_path(s):
    return s.client.post("/fine_tuning/jobs", cast_to=object, body={"model": s.model})


@check("refusals")
def the_model_is_listed(s):
    return s.model in [m.id for m in s.client.models.list()], s.client.models.retrieve(s.model).id == s.model


@check("queue")
def cancelled_in_the_queue(s):
    return outcome(s.chat, s.with_options(timeout=0.5, max_retries=0))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("suite", choices=CHECKS)
    p.add_argument("--base-url", required=True)
    p.add_argument("--key", required=True)
    p.add_argument("--model", required=True)
    p.add_argument("--engine-url", help="the engine itself, without /v1")
    a = p.parse_args()
    server = Server(a)
    results = {f.__name__: outcome(f, server) for f in CHECKS[a.suite]}
    json.dump(results, sys.stdout, indent=1, ensure_ascii=False)
    print()


if __name__ == "__main__":
    main()

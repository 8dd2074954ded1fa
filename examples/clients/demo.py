#!/usr/bin/env python3
"""Drives every model of examples/cpu/models.toml through the one endpoint and shows what was swapped.

Chat, streams (alone and three at once), embeddings and an error, with the openai client as it is; ends with a
table of the requests, and with exit status 1 if an answer was not what it had to be.
"""

import math
import re
import sys
import threading
import time
from dataclasses import dataclass

import openai

COUNTERS = ["alpha", "beta", "gamma"]
client = openai.OpenAI()  # OPENAI_BASE_URL and OPENAI_API_KEY are in the environment
failures = []


@dataclass
class Row:
    """A request in the closing table; times in milliseconds."""

    model: str
    kind: str
    queue: str
    swap: str
    total: float
    answer: str


rows = []


def record(model, kind, headers, began, answer):
    queue, swap = (headers.get(f"x-swapserve-{h}-ms", "-") for h in ("queue", "swap"))
    rows.append(Row(model, kind, queue, swap, (time.monotonic() - began) * 1e3, " ".join(answer.split())))


def check(what, ok):
    if not ok:
        failures.append(what)
    return ok


def counts(model, text, tokens):
    """Whether a counting model's text is its words 0 .. tokens-1, each once and in order."""
    return [f"{model}{i:04d}" for i in range(tokens)] == text.split()


def ask(model, question, tokens):
    began = time.monotonic()
    raw = client.chat.completions.with_raw_response.create(
        model=model,
        messages=[{"role": "user", "content": question}],
        max_tokens=tokens,
        temperature=0,
    )
    answer = raw.parse().choices[0].message.content
    record(model, "chat", raw.headers, began, answer)
    return answer


def stream(model, tokens):
    began = time.monotonic()
    text, pieces = "", 0
    with client.chat.completions.with_streaming_response.create(
        model=model,
        messages=[{"role": "user", "content": "Count."}],
        max_tokens=tokens,
        temperature=0,
        stream=True,
    ) as reply:
        for chunk in reply.parse():
            if chunk.choices and chunk.choices[0].delta.content:
                text += chunk.choices[0].delta.content
                pieces += 1
        headers = reply.headers
    whole = check(f"stream of {model}", counts(model, text, tokens))
    verdict = "every token in order" if whole else f"WRONG: {text!r}"
    record(model, "stream", headers, began, f"{pieces} pieces, {verdict}")


def chat_round():
    print("\n-- chat: each model is asked in turn, twice")
    for _ in range(2):
        answer = ask("smollm2", "What is the capital of Italy? Answer in one short sentence.", 30)
        print(f"   smollm2: {answer.strip()}")
        check("smollm2 answers in words", re.search(r"[A-Za-z]{3}", answer))
        for model in COUNTERS:
            answer = ask(model, "Count.", 6)
            print(f"   {model}:{answer}")
            check(f"chat with {model}", counts(model, answer, 6))


def stream_round():
    print("\n-- streaming: one, then three models at once")
    stream("alpha", 40)
    threads = [threading.Thread(target=stream, args=(model, 1500)) for model in COUNTERS]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    for row in rows[-4:]:
        print(f"   {row.model}: {row.answer}")


def embedding_round():
    print("\n-- embeddings: likeness to the first sentence")
    sentences = ["The cat sleeps on the sofa.", "Die Katze schläft auf dem Sofa.", "Interest rates rose in May."]
    began = time.monotonic()
    raw = client.embeddings.with_raw_response.create(model="e5", input=sentences)
    vectors = [item.embedding for item in raw.parse().data]
    record("e5", "embeddings", raw.headers, began, f"{len(vectors)} vectors of {len(vectors[0])}")

    def likeness(i):
        a, b = vectors[0], vectors[i]
        return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))

    for i, sentence in enumerate(sentences):
        print(f"   {likeness(i):.3f}  {sentence}")
    check("a translation is nearer than another subject", likeness(1) > likeness(2))


def error_round():
    print("\n-- an error is the client's own kind")
    try:
        client.chat.completions.create(model="no-such-model", messages=[{"role": "user", "content": "?"}])
        check("an unknown model is an error", False)
    except openai.NotFoundError as e:
        print(f"   openai.NotFoundError: {e.body.get('message') if isinstance(e.body, dict) else e}")


def table():
    print("\n-- requests and what they waited for (ms)")
    print(f"   {'model':<9}{'kind':<12}{'queue':>9}{'swap':>9}{'total':>9}  answer")
    for r in rows:
        print(f"   {r.model:<9}{r.kind:<12}{r.queue:>9}{r.swap:>9}{r.total:>9.0f}  {r.answer[:60]}")


def main():
    print(f"endpoint {client.base_url}, models: {', '.join(m.id for m in client.models.list())}")
    chat_round()
    stream_round()
    embedding_round()
    error_round()
    table()
    for f in failures:
        print(f"FAILED: {f}")
    print("\nall answers are as they must be" if not failures else f"\n{len(failures)} answers are wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())

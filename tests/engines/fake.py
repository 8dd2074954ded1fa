#!/usr/bin/env python3
"""An engine that misbehaves as it is told: an OpenAI-compatible server of a few lines for the tests.

Its word for every prompt is --answer. With --sleeps it has an engine's sleep endpoints over pretended GPU memory,
whose size stands in the file --memory; every control request is a line in the file --calls.
"""

import argparse
import json
import mmap
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

GIB = 1 << 30
FULL = {"weights": 8 * GIB, "kv_cache": 8 * GIB}
CONTEXT = GIB // 2


def arguments():
    p = argparse.ArgumentParser()
    p.add_argument("--port", type=int, required=True)
    p.add_argument("--key", default=os.environ.get("ENGINE_KEY"))
    p.add_argument("--answer", default="one two three")
    p.add_argument("--exit", type=int, help="say why and exit with this code before listening")
    p.add_argument("--mute", action="store_true", help="never listen")
    p.add_argument("--loading", type=float, default=0, help="answer 503 for this many seconds")
    p.add_argument("--hold", help="answer 503 as long as this file is there")
    p.add_argument("--refuse", type=int, help="answer requests with this status")
    p.add_argument("--hang", help="answer nothing as long as this file is there")
    p.add_argument("--flood", help="log without end as long as this file is there")
    p.add_argument("--trial-hold", help="answer one request, and no other as long as this file is there")
    p.add_argument("--deaf", action="store_true", help="ignore TERM")
    p.add_argument("--daemon", action="store_true", help="leave a grandchild in a session of its own")
    p.add_argument("--shm", metavar="NAME", help="keep a file of this name in /dev/shm mapped; never remove it")
    p.add_argument("--pins", type=int, default=0, help="MiB of host memory that its first sleep takes for good")
    p.add_argument("--sleeps", choices=["vllm", "sglang", "trtllm", "ollama"])
    p.add_argument("--memory")
    p.add_argument("--calls")
    p.add_argument("--lie", choices=["sleep", "state", "memory", "wake", "answer", "die-asleep", "die-waking"])
    # Flags of the real engines, for whoever looks whether they are given.
    for flag in ("sleep-mode", "memory-saver", "weights-cpu-backup"):
        p.add_argument(f"--enable-{flag}", action="store_true")
    p.add_argument("--enable_sleep_mode", action="store_true")
    return p.parse_args()


class State:
    """What lies in the pretended GPU memory."""

    def __init__(self, options):
        self.options = options
        self.awake = set(FULL)
        self.loaded = True  # whether the weights are there, and not only their memory
        self.begun = time.monotonic()
        self.slept = False
        self.pinned = b""
        self.answered = False
        self.lock = threading.Lock()
        self.write()

    def write(self):
        if self.options.memory:
            lying = self.options.lie == "memory"
            held = CONTEXT + sum(FULL[tag] for tag in (FULL if lying else self.awake))
            with open(self.options.memory + ".new", "w") as f:
                f.write(str(held))
            os.replace(self.options.memory + ".new", self.options.memory)

    def sleep(self, keep_weights):
        if self.options.lie == "die-asleep":
            os._exit(9)
        if self.options.lie != "sleep":
            self.awake.clear()
            self.loaded = keep_weights
        self.slept = True
        if self.options.pins and not self.pinned:
            self.pinned = b"x" * (self.options.pins << 20)
        self.write()

    def wake(self, tags):
        if self.options.lie == "die-waking":
            os._exit(9)
        if self.options.lie != "wake":
            self.awake |= tags
        self.write()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state = None
    options = None

    def log_message(self, text, *values):
        pass

    def say(self, status, body=None):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        self.serve("")

    def do_POST(self):
        self.serve(self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode())

    def serve(self, body):
        while self.options.hang and os.path.exists(self.options.hang):
            time.sleep(0.5)
        url = urlsplit(self.path)
        state, options = self.state, self.options
        if options.key and self.headers.get("Authorization") != f"Bearer {options.key}":
            return self.say(401, {"error": {"message": "wrong key"}})
        if url.path == "/health":
            loading = time.monotonic() - state.begun < options.loading
            loading = loading or (options.hold and os.path.exists(options.hold))
            return self.say(503 if loading else 200)
        if url.path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            if '"stream":true' in body.replace(" ", ""):
                return self.stream()
            return self.answer(url.path)
        with state.lock:
            if options.calls:
                with open(options.calls, "a") as f:
                    f.write(f"{self.command} {self.path} {body}".rstrip() + "\n")
            control = getattr(self, options.sleeps or "", None)
            handled = control and control(url.path, parse_qs(url.query), json.loads(body or "null"))
        if not handled:
            self.say(404, {"error": {"message": "no such route"}})

    def answer(self, path):
        state, options = self.state, self.options
        while state.answered and options.trial_hold and os.path.exists(options.trial_hold):
            time.sleep(0.02)
        state.answered = True
        if options.refuse:
            return self.say(options.refuse, {"error": {"message": "refused as told"}})
        if state.awake != set(FULL):
            os._exit(11)  # as a kernel would that reads memory which is not there
        sound = state.loaded and not (options.lie == "answer" and state.slept)
        text = options.answer if sound else "!!!!"
        if path == "/v1/embeddings":
            return self.say(200, {"data": [{"embedding": [0.6, 0.8] if sound else [0.8, 0.6]}]})
        message = {"message": {"role": "assistant", "content": text}}
        self.say(200, {"choices": [message if "chat" in path else {"text": text}]})

    def stream(self):
        """Says its word until the client has gone."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        piece = b"data: " + json.dumps({"choices": [{"delta": {"content": self.options.answer}}]}).encode() + b"\n\n"
        try:
            while True:
                while self.options.hang and os.path.exists(self.options.hang):
                    time.sleep(0.5)
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                time.sleep(0.05)
        except OSError:
            self.close_connection = True

    # The sleep endpoints of the four engines that have them; true when the path was theirs.

    def vllm(self, path, query, body):
        state = self.state
        if path == "/sleep":
            state.sleep(keep_weights=query.get("level", ["1"])[0] == "1")
        elif path == "/wake_up":
            state.wake(set(query.get("tags", FULL)))
        elif path == "/collective_rpc" and body == {"method": "reload_weights"}:
            if "weights" not in state.awake:
                os._exit(11)
            state.loaded = True
        elif path == "/is_sleeping":
            lying = self.options.lie == "state"
            self.say(200, {"is_sleeping": not lying and state.awake != set(FULL)})
            return True
        elif path != "/reset_prefix_cache":
            return False
        self.say(200)
        return True

    def sglang(self, path, query, body):
        state = self.state
        tags = set((body or {}).get("tags") or FULL)
        if path == "/flush_cache":
            state.flushes = getattr(state, "flushes", 0) + 1
            self.say(400 if state.flushes % 3 else 200)  # busy, busy, idle
            return True
        if path == "/release_memory_occupation":
            state.sleep(keep_weights=self.options.enable_weights_cpu_backup)
        elif path == "/resume_memory_occupation":
            if tags & state.awake:
                os._exit(12)  # KeyError in its scheduler
            state.wake(tags)
        elif path == "/update_weights_from_disk":
            state.loaded = "weights" in state.awake
            self.say(200, {"success": state.loaded})
            return True
        else:
            return False
        self.say(200)
        return True

    def trtllm(self, path, query, body):
        state = self.state
        if not self.headers.get("x-trtllm-runtime-control-auth", "").startswith("sha256="):
            self.say(401)
            return True
        if path == "/release_memory":
            state.sleep(keep_weights=True)
        elif path == "/resume_memory":
            state.wake(set(FULL))
        elif path == "/memory_status":
            self.say(200, {"state": "running" if state.awake == set(FULL) else "parked"})
            return True
        else:
            return False
        self.say(200, {"status": "success"})
        return True

    def ollama(self, path, query, body):
        state = self.state
        if path == "/api/generate" and body["keep_alive"] == 0:
            state.sleep(keep_weights=True)
            self.say(200, {"done": True, "done_reason": "unload"})
        elif path == "/api/generate":
            state.wake(set(FULL))
            self.say(200, {"done": True, "done_reason": "load"})
        elif path == "/api/ps":
            self.say(200, {"models": [{"name": "m"}] if state.awake == set(FULL) else []})
        else:
            return False
        return True


def leave_daemon():
    if os.fork() == 0:
        os.setsid()
        if os.fork() != 0:
            os._exit(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(60)


def flood(path):
    line = b"the same thing over and over\n" * 40000
    while True:
        if os.path.exists(path):
            os.write(1, line)
        time.sleep(0.01)


def keep_shared_memory(name):
    """As engines do that have worker processes."""
    with open(f"/dev/shm/{name}", "w+b") as f:
        f.truncate(1 << 16)
        return mmap.mmap(f.fileno(), 1 << 16)


def take_all_memory(*_):
    taken = []
    while True:
        taken.append(b"x" * (8 << 20))


def main():
    options = arguments()
    if options.flood:
        threading.Thread(target=flood, args=(options.flood,), daemon=True).start()
    signal.signal(signal.SIGUSR2, take_all_memory)
    print("fake engine with key", options.key, flush=True)
    if options.exit is not None:
        print("fake: no such model", flush=True)
        sys.exit(options.exit)
    if options.deaf:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    shared = keep_shared_memory(options.shm) if options.shm else None
    if options.daemon:
        leave_daemon()
    if options.mute:
        print("fake: loading, forever", flush=True)
        while True:
            time.sleep(60)
    Handler.options = options
    Handler.state = State(options)
    ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()
    del shared


if __name__ == "__main__":
    main()

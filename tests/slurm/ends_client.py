#!/usr/bin/env python3
"""The command of a job of tests/slurm/ends: brings its run into a state, says so, and stays.

    ends_client.py STATE FOLDER

The engines on the GPU are then as those on the CPU are: out, streaming, or on their way. Leaves a process in a session of its own, as commands do that nobody would want to run. Takes all memory there is on
USR2; exits, or stops the run, when the folder has a file `exit` or `stop`.
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path


# The driver is slow from here on, and a checkpoint takes so long that an end meets the gpu server in that call.
SLOW = """cuMemExportToShareableHandle delay=500
cuMemMap delay=500
cuCheckpointProcessCheckpoint delay=15000
cuCheckpointProcessRestore delay=3000
"""


def post(path, body):
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"].removesuffix("/v1") + path
    return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))


def ask(model, stream=False):
    body = {"model": model, "messages": [{"role": "user", "content": "count"}], "stream": stream}
    if stream:
        body |= {"max_tokens": 100_000, "pause_ms": 50}
    try:
        return post("/v1/chat/completions", body)
    except urllib.error.HTTPError as refused:
        sys.exit(f"{model}: {refused.read().decode()}")


def move_to_and_fro(model):
    while True:
        for way in ("out", "in"):
            try:
                post(f"/swapserve/v1/swap/{way}", {"model": model}).read()
            except OSError:
                time.sleep(0.1)


def in_background(run, *arguments):
    threading.Thread(target=run, args=arguments, daemon=True).start()


def state_of(model):
    told = json.loads(subprocess.check_output(["swapserve", "status", "--json"]))
    return next(row["state"] for row in told["models"] if row["name"] == model)


def take_all_memory(*_):
    taken = []
    while True:
        taken.append(b"x" * (8 << 20))


def main():
    state, folder = sys.argv[1], Path(sys.argv[2])
    signal.signal(signal.SIGUSR2, take_all_memory)
    subprocess.Popen(["sleep", "300"], start_new_session=True, stdin=subprocess.DEVNULL)
    if state == "streaming":
        for model in ("one", "three", "four"):
            in_background(list, ask(model, stream=True))
    else:
        ask("one").read()
    if state == "swapping":
        # One is frozen; two's start, which its way in is, does not end any more.
        for model in ("one", "two"):
            subprocess.check_call(["swapserve", "swap", "out", model, "--quiet"])
        (folder / "hold").touch()
        in_background(ask, "two")
        while state_of("two") != "swapping_in":
            time.sleep(0.05)
        (folder / "gpus/faults").write_text(SLOW)
        for model in ("three", "four"):
            in_background(move_to_and_fro, model)
        while state_of("four") != "swapping_out":
            time.sleep(0.05)
    if state == "idle":
        for model in ("three", "four"):
            post("/swapserve/v1/swap/out", {"model": model}).read()
    (folder / "reached").touch()
    while not (folder / "exit").exists():
        if (folder / "stop").exists():
            (folder / "stop").unlink()
            subprocess.call(["swapserve", "stop"])
        time.sleep(0.1)


if __name__ == "__main__":
    main()

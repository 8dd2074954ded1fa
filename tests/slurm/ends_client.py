#!/usr/bin/env python3
"""The command of a job of tests/slurm/ends: brings its run into a state, says so, and stays.

    ends_client.py STATE FOLDER

Leaves a process in a session of its own, as commands do that nobody would want to run. Takes all memory there is on
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


def ask(model, stream=False):
    body = {"model": model, "messages": [{"role": "user", "content": "count"}], "stream": stream}
    headers = {"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}", "Content-Type": "application/json"}
    url = os.environ["OPENAI_BASE_URL"] + "/chat/completions"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers))
    except urllib.error.HTTPError as refused:
        sys.exit(f"{model}: {refused.read().decode()}")


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
        stream = ask("one", stream=True)
        threading.Thread(target=lambda: list(stream), daemon=True).start()
    else:
        ask("one").read()
    if state == "swapping":
        # One is frozen; two's start, which its way in is, does not end any more.
        for model in ("one", "two"):
            subprocess.check_call(["swapserve", "swap", "out", model, "--quiet"])
        (folder / "hold").touch()
        threading.Thread(target=ask, args=["two"], daemon=True).start()
        while state_of("two") != "swapping_in":
            time.sleep(0.05)
    (folder / "reached").touch()
    while not (folder / "exit").exists():
        if (folder / "stop").exists():
            (folder / "stop").unlink()
            subprocess.call(["swapserve", "stop"])
        time.sleep(0.1)


if __name__ == "__main__":
    main()

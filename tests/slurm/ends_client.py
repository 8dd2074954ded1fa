#!/usr/bin/env python3
"""The command of a job of tests/slurm/ends: brings its run into a state, says so, and stays.

    ends_client.py STATE FOLDER

Leaves a process in a session of its own, as commands do that nobody would want to run.
"""

import json
import os
import subprocess
import sys
import threading
import time
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


def main():
    state, folder = sys.argv[1], Path(sys.argv[2])
    subprocess.Popen(["sleep", "300"], start_new_session=True, stdin=subprocess.DEVNULL)
    answer = ask("one", stream=state == "streaming")
    answer.readline()
    if state == "swapping":
        (folder / "hold").touch()  # the second model's start, which its way in is, does not end any more
        threading.Thread(target=ask, args=["two"], daemon=True).start()
        while state_of("two") not in ("swapping_in", "starting"):
            time.sleep(0.05)
    (folder / "reached").touch()
    while state != "streaming" or answer.readline():
        time.sleep(0 if state == "streaming" else 1)


if __name__ == "__main__":
    main()

"""The cluster that the jobs are ended on, and many of them at once."""

import concurrent.futures
import json
import os
import queue
import re
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from .job import ROOT, WATCH, Job, said, tell
from .table import CONF, ENDS
from .watch import wait_for

CLUSTER = ROOT / "scripts/cluster"
# An end that Slurm's clock brings keeps a node for two minutes and the machine for a few seconds of them.
SLOW_NODES = 8
STATES = ["idle", "swapping", "streaming", "starting"]
TRACKERS = ["cgroup", "linuxproc"]
COUNTED = ["processes", "sockets", "shm", "secrets"]


class Lab:
    """A cluster under one tracker."""

    def __init__(self, tracker, at_once):
        self.tracker, self.at_once = tracker, at_once
        stop()
        options = ["--proctrack", tracker, "--nodes", str(at_once + SLOW_NODES), "--gpus", "2", "--wait", "600"]
        options += [word for line in CONF for word in ("--conf", line)]
        subprocess.run([CLUSTER, "start", *options], check=True)
        os.environ["SLURM_CONF"] = re.search(r"SLURM_CONF=(\S+)", said(CLUSTER, "env"))[1]
        self.kill_wait = int(re.search(r"KillWait\s*=\s*(\d+)", said("scontrol", "show", "config"))[1])
        names = said("sinfo", "-h", "-N", "-p", "main", "-o", "%N").split()
        self.nodes = {False: queue.SimpleQueue(), True: queue.SimpleQueue()}
        for at, name in enumerate(names):
            self.nodes[at >= at_once].put(name)

    def run(self, cases):
        """Yields a row of each case with what to show of it, as they end."""
        slow = [case for case in cases if ENDS[case[0]].slow]
        fast = [case for case in cases if not ENDS[case[0]].slow]
        at_once = concurrent.futures.ThreadPoolExecutor(self.at_once)
        waiting = concurrent.futures.ThreadPoolExecutor(SLOW_NODES)
        running = [waiting.submit(self.on_a_node, *case) for case in slow]
        running += [at_once.submit(self.on_a_node, *case) for case in fast]
        try:
            for done in concurrent.futures.as_completed(running):
                yield done.result()
        finally:
            at_once.shutdown(cancel_futures=True)
            waiting.shutdown(cancel_futures=True)

    def on_a_node(self, name, state):
        nodes = self.nodes[ENDS[name].slow]
        node = nodes.get()
        try:
            return end_one(name, state, self.tracker, node, self.kill_wait)
        except Exception as error:  # noqa: BLE001 # a case that cannot be tidied up after must not end the others
            return {"end": name, "tracker": self.tracker, "state": state, "clean": False, "error": repr(error)}, []
        finally:
            nodes.put(node)


def stop():
    subprocess.run([CLUSTER, "stop"], check=False, capture_output=True)


def end_one(name, state, tracker, node, kill_wait):
    """One row, and what to show of it if it is not clean."""
    end, work = ENDS[name], tempfile.mkdtemp(prefix="ends-")
    row = {"end": name, "tracker": tracker, "state": state}
    job, since = None, time.time()
    try:
        job = Job(state, node, work, end)
        job.reach()
        begun = time.time()
        if end.slow:
            begun = wait_for("the run to be told", job.told, 200, pause=0.5)
        else:
            begun = end.do(job) or begun
        if end.then_cancel:
            begun = time.time()
            tell("scancel", str(job.id))
        while any(left := job.left()) and time.time() < begun + kill_wait + 8:
            time.sleep(0.05)
        ended = time.time()
        # KillWait runs from Slurm's TERM, which comes up to a second after what causes it.
        seconds = ended - max(begun, job.told(begun - 0.1) or begun)
        processes, sockets, shm, files = left
        secrets = job.key_files(since) | {str(path) for path in files}
        counts = dict(zip(COUNTED, map(len, (processes, sockets, shm, secrets))))
        row |= {"seconds": round(seconds, 2), **counts, "had": job.had, "models": job.states}
        if job.streams:
            row["streams"] = {model: stream.ended() for model, stream in job.streams.items()}
        row["clean"] = not any(counts.values()) and seconds < kill_wait
        shown = [*map(str, processes), *sockets, *shm, *secrets]
        return row, shown if row["clean"] else shown + job.log().splitlines()[-14:]
    except (OSError, RuntimeError, subprocess.CalledProcessError, TypeError, ValueError) as error:
        return row | {"clean": False, "error": str(error)}, job.log().splitlines()[-14:] if job else []
    finally:
        if job:
            job.clear()
        shutil.rmtree(work)


def key(row):
    return row["tracker"], row["end"], row["state"]


class Results:
    """The rows of a file, the last one of each case."""

    def __init__(self, path):
        self.path, self.rows = path, {}
        if path.exists():
            self.rows = {key(row): row for row in map(json.loads, path.read_text().splitlines())}
        self.order = [(t, e, s) for t in TRACKERS for e in ENDS for s in STATES]

    def add(self, row):
        self.rows[key(row)] = row
        place = {case: at for at, case in enumerate(self.order)}
        rows = sorted(self.rows.values(), key=lambda row: place.get(key(row), len(place)))
        draft = self.path.with_suffix(".new")
        draft.write_text("".join(json.dumps(row) + "\n" for row in rows))
        os.replace(draft, self.path)

    def has(self, case):
        return self.rows.get(case, {}).get("clean", False)


def heads():
    return f"{'':4} {'end':23} {'tracker':9} {'state':9} " + " ".join(f"{key:>9}" for key in ["seconds", *COUNTED])


def show(row, shown):
    counts = " ".join(f"{row.get(key, '?'):>9}" for key in ["seconds", *COUNTED])
    verdict = "ok" if row["clean"] else "FAIL"
    stream = "  streams " + "/".join(row["streams"].values()) if "streams" in row else ""
    print(f"{verdict:4} {row['end']:23} {row['tracker']:9} {row['state']:9} {counts}{stream}", flush=True)
    if not row["clean"]:
        lines = [row.get("error", ""), *shown]
        print("".join(f"       {line[:170]}\n" for line in lines if line), end="", flush=True)


def use(binary: Path):
    os.environ["PATH"] = f"{binary.resolve().parent}:{os.environ['PATH']}"


__all__ = ["STATES", "TRACKERS", "WATCH", "Lab", "Results", "heads", "show", "stop", "use"]

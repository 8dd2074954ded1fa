"""A job in one state, about to end, and what there is of it on the machine."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from datetime import datetime
from pathlib import Path

from .watch import Watch, leftovers, sockets_of_slurm, wait_for

ROOT = Path(__file__).resolve().parents[3]
JOBS = Path.home() / ".swapserve/jobs"
WATCH = Watch()

# One engine that freezes and leaves a deaf daemon, one whose way in is a start and lasts as long as `hold` is there.
# Both keep a file in shared memory, as engines do that have worker processes.
CONFIG = """
[scheduler]
running_slots = 1
patience = "50ms"
min_resident = "50ms"
[memory]
host_headroom = "64MiB"
[defaults]
engine = "custom"
gpus = 0
start_timeout = "120s"
stop_grace = "2s"
[models.one]
swap = "freeze"
command = "python3 {fake} --port {{{{ port }}}} --answer one --daemon --shm {mark}-one --calls {work}/calls"
[models.two]
swap = "restart"
command = "python3 {fake} --port {{{{ port }}}} --answer two --shm {mark}-two --hold {work}/hold"
"""

SCRIPT = """#!/bin/bash
{exec}srun --task-epilog="$(command -v swapserve)" {srun} swapserve run --config {work}/models.toml -- \\
  python3 {client} {state} {work}{then}
"""


def said(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def tell(*command):
    # Whether the job was there to be told shows in what is left of it.
    subprocess.run(command, check=False, capture_output=True)


class Job:
    """A job that has been submitted. It has its node to itself."""

    def __init__(self, state, node, work, end):
        self.state, self.work, self.node, self.end = state, Path(work), node, end
        self.mark = self.work.name
        slurmd = [p for p in leftovers.pids() if leftovers.read(f"/proc/{p}/comm").strip() == b"slurmd"]
        self.slurmd = [p for p in slurmd if node.encode() in leftovers.read(f"/proc/{p}/cmdline").split(b"\0")]
        self.before = set(leftovers.sockets(self.slurmd))
        self.endpoint, self.stream = None, None
        fake = ROOT / "tests/engines/fake.py"
        (self.work / "models.toml").write_text(CONFIG.format(fake=fake, work=work, mark=self.mark))
        if state == "starting":
            (self.work / "hold").touch()
        stay = f" &\nuntil [ -e {work}/leave ]; do sleep 0.1; done"
        text = SCRIPT.format(
            exec="" if end.script_leaves else "exec ",
            srun=" ".join(end.srun),
            then=stay if end.script_leaves else "",
            work=work,
            state=state,
            client=ROOT / "tests/slurm/ends_client.py",
        )
        (self.work / "job.sh").write_text(text)
        options = ["--mem=700M", "--time=4", f"--nodelist={node}", f"--output={work}/log", "--open-mode=append"]
        self.id = int(said("sbatch", "--parsable", *options, *end.sbatch, str(self.work / "job.sh")))

    def reach(self):
        """Waits until it is in its state."""
        self.endpoint = wait_for("the endpoint", self.published)
        wait_for(f"the state {self.state}", self.reached)
        time.sleep(0.3)  # in it, not just entering it
        if self.state == "streaming" and not self.end.at_leisure:
            self.stream = Stream(self.endpoint, "one")

    def published(self):
        try:
            return json.loads((JOBS / f"{self.id}.json").read_text())
        except (OSError, ValueError):
            return None

    def reached(self):
        if not WATCH.last() or "slurmstepd: error" in self.log():
            raise RuntimeError("the job ended before it was in its state")
        # Python itself takes a while before the engine's first line.
        begun = self.find("--answer two", b"python3") and f"{self.mark}-two" in self.shared()
        return begun if self.state == "starting" else (self.work / "reached").exists() and begun

    def again(self):
        """Forgets what was reached: the job starts anew."""
        (self.work / "reached").unlink(missing_ok=True)
        if self.state != "starting":
            (self.work / "hold").unlink(missing_ok=True)

    def log(self):
        try:
            return (self.work / "log").read_text(errors="replace")
        except OSError:
            return ""

    def told(self, since=0.0):
        """When, after `since`, the run first said that it was asked to end; both in seconds since the epoch."""
        found = re.findall(r"(\S+Z)\s+INFO (?:\S+ )?received (?:TERM|USR1|INT)", self.log())
        moments = (datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() for text in found)
        return next((moment for moment in moments if moment > since), None)

    def processes(self, look=None):
        """Those of the run, by environment, arguments or cgroup."""
        folder = str(self.work).encode()
        return [p for p in look or WATCH.last() if self.id in p.jobs or folder in p.words]

    def find(self, mark, program):
        """The first process of the run with this mark in its arguments that is this program's."""
        found = (p.pid for p in self.processes() if mark in str(p) and p.words.startswith(program))
        return next(found, None)

    def srun(self):
        """srun itself, not its shepherd."""
        in_env = b"SLURM_JOB_ID=%d\0" % self.id
        found = (p for p in leftovers.pids() if leftovers.read(f"/proc/{p}/comm").strip() == b"srun")
        return min(int(p) for p in found if in_env in leftovers.read(f"/proc/{p}/environ"))

    def sockets(self):
        """Listening sockets that are new on its node."""
        slurms = sockets_of_slurm()  # before the others, so that one which is just closing is not taken for the run's
        new = leftovers.sockets(self.slurmd).items()
        return {name for inode, name in new if inode not in slurms and inode not in self.before}

    def shared(self):
        return {name for name in os.listdir("/dev/shm") if self.mark in name or name.startswith(f"swapserve-{self.id}")}

    def files(self):
        """The run's own: its directory and what it published."""
        parents = {os.environ.get("XDG_RUNTIME_DIR"), os.environ.get("TMPDIR"), "/tmp"} - {None}
        found = [path for parent in parents for path in Path(parent).glob(f"swapserve-{self.id}-*")]
        return found + list(JOBS.glob(f"{self.id}.json"))

    def key_files(self, since):
        return {str(path) for path in leftovers.files_with(self.endpoint["key"].encode(), since)}

    def left(self):
        """Processes, sockets, shared memory, files: what there is of it now."""
        return [self.processes(WATCH.now()), self.sockets(), self.shared(), self.files()]

    def clear(self):
        """What an end left must not be in the way of the next job on the node."""
        tell("scancel", str(self.id))
        for process in self.processes(WATCH.now()):
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        for name in self.shared():
            Path(f"/dev/shm/{name}").unlink(missing_ok=True)
        for path in self.files():
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
        # A batch script that was killed drains its node.
        tell("scontrol", "update", f"nodename={self.node}", "state=resume")
        wait_for("the node to be free", lambda: not said("squeue", "-h", "-o", "%A", "-w", self.node), pause=0.3)


class Stream:
    """A client apart from the job's command, in mid-stream; notes how the stream ends."""

    def __init__(self, endpoint, model):
        self.last = b""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "count"}], "stream": True})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {endpoint['key']}\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        self.link = socket.socket(socket.AF_UNIX)
        self.link.settimeout(60)
        self.link.connect(endpoint["socket"])
        self.link.sendall((head + body).encode())
        self.last = self.link.recv(4096)
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        try:
            while more := self.link.recv(4096):
                self.last = (self.last + more)[-4096:]
        except OSError:
            pass
        self.link.close()

    def ended(self):
        """`told`: an error event; `whole`: its regular end; else `cut`."""
        if b'"error"' in self.last:
            return "told"
        return "whole" if b"[DONE]" in self.last else "cut"

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
# Both keep a file in shared memory, as engines do that have worker processes. Two on a GPU of the software driver: `three`
# has a worker and is parked in the pinned pool, `four` is checkpointed by the driver.
CONFIG = """
[scheduler]
running_slots = 1
patience = "50ms"
min_resident = "50ms"
[memory]
host_headroom = "64MiB"
gpu_headroom = "0MiB"
pool = "256MiB"
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
[models.three]
gpus = 1
gpu_memory = "96MiB"
swap = "park"
command = "{gpu_engine} --port {{{{ port }}}} --model three --weights 8MiB --workers 1 --hold {work}/hold-three"
[models.four]
gpus = 1
gpu_memory = "96MiB"
swap = "checkpoint"
command = "{gpu_engine} --port {{{{ port }}}} --model four --weights 8MiB"
"""

SCRIPT = """#!/bin/bash
export SOFTWARE_GPU_DIR={work}/gpus LD_LIBRARY_PATH={work}/gpus/lib
{exec}srun --task-epilog="$(command -v swapserve)" {srun} swapserve run --config {work}/models.toml -- \\
  python3 {client} {state} {work}{then}
"""


def built(name):
    """A file that was built with the program under test."""
    return Path(shutil.which("swapserve")).with_name(name)


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
        self.endpoint, self.streams, self.had, self.states = None, {}, {}, {}
        fake = ROOT / "tests/engines/fake.py"
        (self.work / "models.toml").write_text(CONFIG.format(fake=fake, work=work, mark=self.mark, gpu_engine=built("gpu-engine")))
        self.make_gpus()
        if state == "starting":
            (self.work / "hold").touch()
            (self.work / "hold-three").touch()
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
        options = ["--mem=1100M", "--gres=gpu:1", "--time=4", f"--nodelist={node}", f"--output={work}/log", "--open-mode=append"]
        self.id = int(said("sbatch", "--parsable", *options, *end.sbatch, str(self.work / "job.sh")))

    def make_gpus(self):
        """The software driver's machine: the GPUs of the node's own device files."""
        libraries = self.work / "gpus/lib"
        libraries.mkdir(parents=True)
        for driver, name in [("cuda", "libcuda.so.1"), ("nvml", "libnvidia-ml.so.1")]:
            (libraries / name).symlink_to(built(f"libsoftware_{driver}.so"))
        devices = Path(os.environ["SLURM_CONF"]).parents[1] / "dev"
        (self.work / "gpus/gpus").write_text("".join(f"gpu {256 << 20} {devices}/nvidia{n}\n" for n in (0, 1)))

    def reach(self):
        """Waits until it is in its state, and notes what there is of it that an end could leave."""
        self.endpoint = wait_for("the endpoint", self.published)
        wait_for(f"the state {self.state}", self.reached)
        time.sleep(0.3)  # in it, not just entering it
        self.note_what_it_has()
        if self.state == "streaming" and not self.end.at_leisure:
            self.streams = {model: Stream(self.endpoint, model) for model in ("one", "three")}

    def note_what_it_has(self):
        processes, sockets, shm, _ = self.left()
        if not any(p.words.endswith(b"\0gpu-server\0") for p in processes):
            raise RuntimeError("the run has no gpu server")
        if not any("@swapserve-park-" in name for name in sockets):
            raise RuntimeError("the run has no pool to park in")
        self.had = {"processes": len(processes), "sockets": len(sockets), "shm": len(shm)}
        models = self.status()["models"]
        self.states = {model["name"]: model["state"] for model in models}

    def status(self):
        link = socket.socket(socket.AF_UNIX)
        link.settimeout(20)
        link.connect(self.endpoint["socket"])
        head = f"GET /swapserve/v1/status HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {self.endpoint['key']}\r\n"
        link.sendall(f"{head}Connection: close\r\n\r\n".encode())
        with link.makefile("rb") as answer:
            return json.loads(answer.read().split(b"\r\n\r\n", 1)[1])

    def published(self):
        try:
            return json.loads((JOBS / f"{self.id}.json").read_text())
        except (OSError, ValueError):
            return None

    def reached(self):
        if not WATCH.last() or "slurmstepd: error" in self.log():
            raise RuntimeError("the job ended before it was in its state")
        # Python itself takes a while before the engine's first line. An engine's worker starts when its own memory is filled.
        begun = self.find("--answer two", b"python3") and f"{self.mark}-two" in self.shared()
        begun = begun and self.find("--worker --model three", bytes(built("gpu-engine")))
        return begun if self.state == "starting" else (self.work / "reached").exists() and begun

    def again(self):
        """Forgets what was reached: the job starts anew."""
        (self.work / "reached").unlink(missing_ok=True)
        (self.work / "gpus/faults").unlink(missing_ok=True)
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
        return found + list(JOBS.glob(f"{self.id}.json")) + list(JOBS.glob(f"{self.id}-*.json"))

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
        free = lambda: not said("squeue", "-h", "-o", "%A", "-w", self.node)  # noqa: E731
        # A batch script that was killed drains its node.
        tell("scontrol", "update", f"nodename={self.node}", "state=resume")
        try:
            wait_for("the node to be free", free, 20, pause=0.3)
        except TimeoutError:
            # After a minute slurmd gives a step up and drains the node. The next job needs it.
            kept_by = ", ".join(self.in_cgroups()) or "nobody in the job's cgroups"
            wait_for("the node to be free", free, 180, pause=1)
            tell("scontrol", "update", f"nodename={self.node}", "state=resume")
            raise RuntimeError(f"Slurm had the job for long after its end; kept by {kept_by}") from None

    def in_cgroups(self):
        """Whoever is in the job's cgroups, also what has no command line any more, with its state in the kernel."""
        for folder in Path("/sys/fs/cgroup/freezer").glob(f"slurm_*/uid_*/job_{self.id}/step_*"):
            for pid in leftovers.read(folder / "cgroup.procs").decode().split():
                status = leftovers.read(f"/proc/{pid}/status").decode().splitlines()
                told = [line.split(":", 1)[1].strip() for line in status if line.startswith(("Name:", "State:"))]
                yield f"{folder.name}: {pid} {' '.join(told)}"


# How the engine on the GPU is told not to end; the others do not end anyhow.
ENDLESS = {"max_tokens": 100_000, "pause_ms": 50}


class Stream:
    """A client apart from the job's command, in mid-stream; notes how the stream ends."""

    def __init__(self, endpoint, model):
        self.last = b""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": "count"}], "stream": True, **ENDLESS})
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

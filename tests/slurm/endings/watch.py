"""Every process on the machine, looked at a few times a second by one thread, whoever asks.

Slurm's own processes (srun, slurmstepd, the batch script) and Slurm's tools are left out.
"""

import os
import re
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts/tools"))
import leftovers  # noqa: E402

PERIOD = 0.1
SLURMS = (b"srun\0", b"slurmstepd:", b"sbatch\0", b"scancel\0", b"scontrol\0", b"squeue\0")
IN_ENV = re.compile(rb"(?:^|\0)SLURM_JOB_ID=(\d+)\0")
IN_CGROUP = re.compile(rb"/job_(\d+)(?:/|\n)")


@dataclass
class Process:
    """One that may be a job's."""

    pid: int
    words: bytes
    jobs: set

    def __str__(self):
        return f"{self.pid} {self.words.replace(bytes(1), b' ').decode(errors='replace').strip()}"


class Watch:
    """The last look at /proc."""

    def __init__(self):
        self.kernel = set()
        self.taken, self.found = threading.Condition(), []
        self.looks = 0
        threading.Thread(target=self.run, daemon=True).start()

    def run(self):
        while True:
            began = time.monotonic()
            found = self.look()
            with self.taken:
                self.found, self.looks = found, self.looks + 1
                self.taken.notify_all()
            time.sleep(max(PERIOD - (time.monotonic() - began), PERIOD / 2))

    def look(self):
        found = []
        for pid in leftovers.pids():
            if pid in self.kernel:
                continue
            words = leftovers.read(f"/proc/{pid}/cmdline")
            if not words:  # a zombie, or a thread of the kernel, which stays one
                if b"\nPPid:\t2\n" in leftovers.read(f"/proc/{pid}/status"):
                    self.kernel.add(pid)
                continue
            if words.startswith(SLURMS) or b"/slurm_script" in words:
                continue
            jobs = IN_ENV.findall(leftovers.read(f"/proc/{pid}/environ"))
            jobs += IN_CGROUP.findall(leftovers.read(f"/proc/{pid}/cgroup"))
            found.append(Process(int(pid), words, {int(job) for job in jobs}))
        return found

    def now(self):
        """A look that began after this call."""
        with self.taken:
            seen = self.looks
            self.taken.wait_for(lambda: self.looks > seen + 1)
            return self.found

    def last(self):
        with self.taken:
            return self.found


def wait_for(what, look, longest=60, pause=0.1):
    deadline = time.monotonic() + longest
    while not (seen := look()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {longest} s")
        time.sleep(pause)
    return seen


def sockets_of_slurm():
    """The inodes of sockets that Slurm's own processes hold: they are not the run's."""
    found = set()
    for pid in leftovers.pids():
        if leftovers.read(f"/proc/{pid}/comm").strip() in (b"srun", b"slurmstepd", b"slurmd", b"sbatch"):
            try:
                links = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")]
            except OSError:
                continue
            found |= {link[8:-1] for link in links if link.startswith("socket:[")}
    return found

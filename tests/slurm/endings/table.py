"""The ends of a job: what is done to it, by whom."""

import os
import signal
import time
from pathlib import Path

from .job import WATCH, said, tell
from .watch import leftovers, wait_for


class End:
    """A way to end a job: `do`, given the job, returns when the end began, if not at the call; without it Slurm does it by itself, by its clock (`slow`)."""

    def __init__(self, do=None, *, srun=(), sbatch=(), script_leaves=False, not_in=(), then_cancel=False, at_leisure=False):
        self.do, self.srun, self.sbatch, self.script_leaves = do, srun, sbatch, script_leaves
        self.not_in, self.then_cancel = not_in, then_cancel
        # Streams of others may go on for longer than KillWait, since nobody kills.
        self.at_leisure = at_leisure
        self.slow = do is None


def scancel(*options):
    return lambda job: tell("scancel", *options, str(job.id))


def touch(name):
    return lambda job: (job.work / name).touch()


def step(*options):
    return lambda job: tell("scancel", *options, f"{job.id}.0")


def to_srun(*signals):
    def send(job):
        srun = job.srun()
        for number in signals:
            os.kill(srun, number)
            time.sleep(0.2)

    return send


def twice(do):
    def again(job):
        do(job)
        time.sleep(0.7)  # sooner, the second one is an echo of the first
        do(job)

    return again


def bounded(job):
    """Whether a limit on the job's memory is enforced: then the kernel's own killer can be had."""
    return b"/job_%d" % job.id in leftovers.read(f"/proc/{job.endpoint['pid']}/cgroup")


def out_of_memory(whom):
    """Takes all of the job's memory, and has the kernel kill the process that `whom` finds; where nothing bounds the job, sends
    what the kernel would send."""

    def do(job):
        pid = whom(job)
        # An engine that takes all memory goes before a daemon whatever is done: the command has to.
        if bounded(job) and (whom is not daemon or command(job)):
            Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
            os.kill(command(job) or job.find("--answer two", b"python3"), signal.SIGUSR2)
        else:
            os.kill(pid, signal.SIGKILL)
        wait_for("the kernel to kill it", lambda: not leftovers.read(f"/proc/{pid}/cmdline"), pause=0.02)
        return time.time()

    return do


def daemon(job):
    return job.endpoint["pid"]


def engine(job):
    # In a start there is no command: the engine that starts takes the memory, and is what the kernel kills.
    return job.find("--answer two" if job.state == "starting" else "--answer one", b"python3")


def command(job):
    return job.find("ends_client.py", b"python3")


def suspend(job):
    tell("scontrol", "suspend", str(job.id))
    wait_for("the job to be suspended", lambda: said("squeue", "-h", "-o", "%t", "-j", str(job.id)) == "S")
    time.sleep(1)


def suspend_and_resume(job):
    suspend(job)
    tell("scontrol", "resume", str(job.id))
    time.sleep(0.5)
    if b"swapserve" not in leftovers.read(f"/proc/{job.endpoint['pid']}/cmdline"):
        raise RuntimeError("the run did not survive being suspended")


def requeue_and_cancel(job):
    """The run after a requeue starts clean and knows what it is; then it is cancelled."""
    tell("scontrol", "requeue", str(job.id))
    wait_for("the first run to end", lambda: not any(job.left()))
    job.again()
    pending = lambda: said("squeue", "-h", "-o", "%t", "-j", str(job.id)) == "PD"  # noqa: E731
    wait_for("the job to be requeued", pending)
    tell("scontrol", "update", f"jobid={job.id}", "StartTime=now")
    job.reach()
    if "restarted 1 time" not in job.log():
        raise RuntimeError("the second run does not know that it is a restart")


def preempt(job):
    """A job of a better partition wants the node."""
    options = ["--partition=urgent", "--mem=3900M", "--time=1", f"--nodelist={job.node}", "--output=/dev/null"]
    urgent = said("sbatch", "--parsable", *options, "--wrap", "sleep 1")
    try:
        wait_for("the run to be told", job.told, 90)
    finally:
        tell("scancel", urgent)


NEEDS_COMMAND = ["starting"]

ENDS = {
    "command-exits": End(touch("exit"), not_in=NEEDS_COMMAND, at_leisure=True),
    "stop-verb": End(touch("stop"), not_in=NEEDS_COMMAND, at_leisure=True),
    "scancel-job": End(scancel()),
    "scancel-job-twice": End(twice(scancel())),
    "scancel-full-term": End(scancel("--signal=TERM", "--full")),
    "scancel-batch-kill": End(scancel("--signal=KILL", "--batch")),
    "scancel-step": End(step()),
    "step-term": End(step("--signal=TERM")),
    "step-term-twice": End(twice(step("--signal=TERM"))),
    "step-int": End(step("--signal=INT"), at_leisure=True),
    "step-int-twice": End(twice(step("--signal=INT")), at_leisure=True),
    "step-usr1": End(step("--signal=USR1"), at_leisure=True),
    "step-usr1-twice": End(twice(step("--signal=USR1")), at_leisure=True),
    "srun-int-twice": End(to_srun(signal.SIGINT, signal.SIGINT)),
    "srun-term": End(to_srun(signal.SIGTERM)),
    "srun-usr1": End(to_srun(signal.SIGUSR1), at_leisure=True),
    "srun-kill": End(to_srun(signal.SIGKILL)),
    "requeue": End(lambda job: tell("scontrol", "requeue", str(job.id))),
    "requeue-then-scancel": End(requeue_and_cancel, then_cancel=True),
    "suspend-scancel": End(suspend, then_cancel=True),
    "suspend-resume-scancel": End(suspend_and_resume, then_cancel=True),
    "script-exits": End(touch("leave"), script_leaves=True),
    "oom-engine-scancel": End(out_of_memory(engine), then_cancel=True),
    "oom-daemon": End(out_of_memory(daemon)),
    "oom-command": End(out_of_memory(command), not_in=NEEDS_COMMAND, at_leisure=True),
    "preempt-requeue": End(preempt, sbatch=["--partition=requeued"]),
    "preempt-cancel": End(preempt, sbatch=["--partition=cancelled"]),
    "time-limit": End(sbatch=["--time=1"]),
    "step-limit": End(srun=["--time=1"]),
    "signal-usr1": End(sbatch=["--signal=USR1@20", "--time=1"], at_leisure=True),
    "signal-b-usr1": End(sbatch=["--signal=B:USR1@20", "--time=1"], at_leisure=True),
}

# What Slurm's configuration needs for some of them; GraceTime is below KillWait's floor of 5 s.
CONF = [
    "PreemptType=preempt/partition_prio",
    "PreemptMode=REQUEUE",
    "PartitionName=requeued Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=4",
    "PartitionName=cancelled Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=1 PreemptMode=CANCEL GraceTime=4",
    "PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=10 PreemptMode=OFF",
]

__all__ = ["CONF", "ENDS", "End", "WATCH"]

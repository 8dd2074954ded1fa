#!/usr/bin/env python3
"""Says what a job left on this machine: processes, listening sockets, shared memory, files with its key.

    leftovers.py before FILE                            note what is there before the job
    leftovers.py after FILE --job ID [--key-file KEY]   compare after it; exit status 1 if anything is left

Looks at the nodes of scripts/cluster: at the network namespaces its slurmds live in, so a socket of something
else on the machine is not taken for the job's. Needs root.
"""

import argparse
import json
import os
import re
import sys
import time
from pathlib import Path

LISTENING = "0A"  # of /proc/net/tcp, include/net/tcp_states.h
ACCEPTS = 0x10000  # __SO_ACCEPTCON in the flags of /proc/net/unix
SECRET_ROOTS = ["/tmp", "/var/tmp", "/dev/shm", "/run", str(Path.home()), os.getcwd()]
SKIPPED = {"target", ".git", ".engines", ".cargo", ".rustup", ".pyenv", ".cache"}


def pids():
    return [p for p in os.listdir("/proc") if p.isdigit()]


def read(path):
    try:
        return Path(path).read_bytes()
    except OSError:  # the process ended, or the file is not ours to read
        return b""


def node_namespaces():
    """One process of each network namespace that a slurmd lives in."""
    found = {}
    for pid in pids():
        if read(f"/proc/{pid}/comm").strip() == b"slurmd":
            try:
                found[os.readlink(f"/proc/{pid}/ns/net")] = pid
            except OSError:
                pass
    return found.values()


def sockets(namespaces=None):
    """Listening sockets in the network namespaces of these processes, by inode; of all nodes, if none are named."""
    found = {}
    for pid in node_namespaces() if namespaces is None else namespaces:
        for table in ("tcp", "tcp6"):
            for line in read(f"/proc/{pid}/net/{table}").decode().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING:
                    found[fields[9]] = f"{table} port {int(fields[1].rsplit(':', 1)[1], 16)}"
        for line in read(f"/proc/{pid}/net/unix").decode(errors="replace").splitlines()[1:]:
            fields = line.split(None, 7)
            if int(fields[3], 16) & ACCEPTS and len(fields) == 8:
                found[fields[6]] = f"unix {fields[7]}"
    return found


def listeners():
    """The names of the listening sockets on all nodes."""
    return set(sockets().values())


def snapshot():
    return {"time": time.time(), "listeners": sorted(listeners()), "shm": sorted(os.listdir("/dev/shm"))}


def job_processes(job):
    """Processes that the job's environment or its cgroup names, zombies left out."""
    in_env = re.compile(rb"(^|\0)SLURM_JOB_ID=%d\0" % job)
    in_cgroup = re.compile(rb"/job_%d(/|\n)" % job)
    for pid in pids():
        if in_env.search(read(f"/proc/{pid}/environ")) or in_cgroup.search(read(f"/proc/{pid}/cgroup")):
            state = re.search(rb"^State:\s+(\S)", read(f"/proc/{pid}/status"), re.M)
            if state and state[1] != b"Z":
                yield f"{pid} {read(f'/proc/{pid}/cmdline').replace(bytes(1), b' ').decode(errors='replace')[:80]}"


def files_below(root, since):
    """Files that were written since then; large ones, and what cargo and git keep, left out."""
    for folder, folders, names in os.walk(root):
        folders[:] = [d for d in folders if d not in SKIPPED]
        for path in (os.path.join(folder, n) for n in names):
            try:
                info = os.lstat(path)
            except OSError:
                continue
            if info.st_mtime >= since - 1 and os.path.isfile(path) and info.st_size <= 1 << 26:
                yield path


def files_with(secret, since):
    """Files written since the job began that hold its key."""
    seen = set()
    for root in SECRET_ROOTS:
        for path in files_below(root, since):
            if path not in seen and secret in read(path):
                seen.add(path)
                yield path


def report(what, left):
    left = sorted(left)
    print(f"   {'ok  ' if not left else 'LEFT'} {what}{'' if left else ': none'}")
    for item in left:
        print(f"        {item}")
    return not left


def after(before, job, key_file):
    now = snapshot()
    clean = [
        report("processes of the job", job_processes(job)),
        report("listening sockets, TCP and Unix, on the job's nodes", set(now["listeners"]) - set(before["listeners"])),
        report("shared-memory files", set(now["shm"]) - set(before["shm"])),
    ]
    if key_file:
        key = Path(key_file).read_bytes().strip()
        os.unlink(key_file)
        if len(key) < 16:
            sys.exit(f"leftovers: {key_file} holds no key to look for")
        clean.append(report("files with the job's key", files_with(key, before["time"])))
    return all(clean)


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("when", choices=["before", "after"])
    cli.add_argument("file")
    cli.add_argument("--job", type=int)
    cli.add_argument("--key-file", help="holds the job's key; it is removed, then the key is looked for")
    a = cli.parse_args()
    if a.when == "before":
        Path(a.file).write_text(json.dumps(snapshot()))
    elif a.job is None:
        cli.error("after wants --job")
    else:
        sys.exit(0 if after(json.loads(Path(a.file).read_text()), a.job, a.key_file) else 1)


if __name__ == "__main__":
    main()

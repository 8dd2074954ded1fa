#!/usr/bin/env python3
"""What another user of the node tries. Runs as that user; prints one JSON line an attempt: what it was, and what came of it.

usage: attempts.py KIND ARGUMENT...
"""

import ctypes
import http.client
import json
import os
import signal
import socket
import sys


def tell(attempt, outcome):
    print(json.dumps({"attempt": attempt, "outcome": str(outcome)}), flush=True)


def attempt(what, work):
    """The name of the error, or what it gave."""
    try:
        tell(what, work())
    except OSError as error:
        tell(what, type(error).__name__ if error.errno is None else os.strerror(error.errno))


def read(path):
    with open(path, "rb") as f:
        return "read %d bytes" % len(f.read())


def files(*paths):
    """Reads files, lists directories, and puts files into them."""
    for path in paths:
        attempt(f"read {path}", lambda: os.listdir(path) if os.path.isdir(path) else read(path))
        attempt(f"append {path}", lambda: open(path, "ab").close())
        attempt(f"remove {path}", lambda: os.remove(path))
        attempt(f"plant beside {path}", lambda: open(path + ".planted", "w").close())


def sockets(*paths):
    """Connects to Unix sockets."""
    for path in paths:
        s = socket.socket(socket.AF_UNIX)
        attempt(f"connect {path}", lambda: s.connect(path))


def http_requests(address, wrong):
    """Asks the endpoint, or an engine, in every way that could do without the key."""
    host, port = address.rsplit(":", 1)
    body = json.dumps({"model": "one", "messages": [{"role": "user", "content": "x"}]})
    keys = [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Bearer {wrong}"},
        {"Authorization": f"Basic {wrong}"},
        {"Authorization": "Bearer none"},
        {"Authorization": "Bearer null"},
        {"x-api-key": ""},
        {"x-api-key": wrong},
        {"api-key": wrong},
        {"Proxy-Authorization": f"Bearer {wrong}"},
        {"Cookie": f"key={wrong}"},
        {"X-Forwarded-For": "127.0.0.1"},
        {"X-Real-IP": "127.0.0.1", "Host": "localhost"},
    ]
    asked = [
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/embeddings"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/one"),
        ("GET", "/models"),
        ("POST", "/models/unload"),
        ("GET", "/metrics"),
        ("GET", "/swapserve/v1/status"),
        ("GET", "/swapserve/v1/explain/one"),
        ("POST", "/swapserve/v1/swap/out"),
        ("POST", "/swapserve/v1/swap/pin"),
        ("POST", "/swapserve/v1/stop"),
        ("POST", "/api/swapout"),
        ("GET", "/v1/realtime?model=one"),
        ("GET", f"/v1/models?key={wrong}"),
    ]
    for headers in keys:
        for method, path in asked:
            def work():
                connection = http.client.HTTPConnection(host, int(port), timeout=30)
                sent = body if method == "POST" else None
                connection.request(method, path, sent, {"Content-Type": "application/json", **headers})
                return connection.getresponse().status
            attempt(f"{method} {path} {sorted(headers)}", work)


def processes(*pids):
    """Looks into processes, signals and traces them, changes how they run, and takes their files and memory."""
    libc = ctypes.CDLL(None, use_errno=True)

    def call(function, *arguments):
        if getattr(libc, function)(*arguments) < 0:
            raise OSError(ctypes.get_errno(), "")
        return "done"

    for pid in map(int, pids):
        for name in ("environ", "mem", "maps", "io", "stack", "auxv", "syscall", "pagemap", "personality"):
            attempt(f"{pid} {name}", lambda: read(f"/proc/{pid}/{name}"))
        for name in ("cwd", "root", "exe"):
            attempt(f"{pid} {name}", lambda: os.readlink(f"/proc/{pid}/{name}"))
        for name in ("fd", "map_files", "fdinfo"):
            attempt(f"{pid} {name}", lambda: os.listdir(f"/proc/{pid}/{name}"))
        for name in ("oom_score_adj", "coredump_filter", "clear_refs", "comm"):
            attempt(f"{pid} write {name}", lambda: open(f"/proc/{pid}/{name}", "w").write("1"))
        for number in (signal.SIGSTOP, signal.SIGCONT, signal.SIGTERM, signal.SIGUSR1, signal.SIGKILL, 0):
            attempt(f"{pid} kill {int(number)}", lambda: os.kill(pid, number))
        attempt(f"{pid} ptrace attach", lambda: call("ptrace", 16, pid, None, None))
        attempt(f"{pid} ptrace seize", lambda: call("ptrace", 0x4206, pid, None, None))
        buffer = ctypes.create_string_buffer(8)
        local = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 8)
        remote = (ctypes.c_void_p * 2)(0x400000, 8)
        attempt(f"{pid} read memory", lambda: call("process_vm_readv", pid, local, 1, remote, 1, 0))
        attempt(f"{pid} write memory", lambda: call("process_vm_writev", pid, local, 1, remote, 1, 0))
        attempt(f"{pid} limits", lambda: call("prlimit", pid, 4, (ctypes.c_ulong * 2)(9, 9), None))
        attempt(f"{pid} cores", lambda: os.sched_setaffinity(pid, {0}))
        attempt(f"{pid} priority", lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
        try:
            held = os.pidfd_open(pid)
        except OSError as error:
            tell(f"{pid} pidfd", os.strerror(error.errno))
            continue
        for number in range(4):
            attempt(f"{pid} take file {number}", lambda: call("syscall", 438, held, number, 0))
        attempt(f"{pid} pidfd signal", lambda: signal.pidfd_send_signal(held, signal.SIGTERM))


def command_lines(*pids):
    """What `ps` shows: the command line, for the test to look through."""
    for pid in pids:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            tell(f"{pid} cmdline", f.read().replace(b"\0", b" ").decode(errors="replace"))


def abstract(name, kind):
    """Connects to an abstract socket, says something, and waits for an answer."""
    s = socket.socket(socket.AF_UNIX, {"seqpacket": socket.SOCK_SEQPACKET, "stream": socket.SOCK_STREAM}[kind])
    s.settimeout(30)

    def work():
        s.connect("\0" + name)
        s.send(bytes([1, 0, 0, 0]) + bytes(4) + bytes([1]) + bytes(7) + bytes(48))  # a greeting of the right form
        answer = s.recv(4096)
        return f"answered {answer!r}" if answer else "hung up"

    attempt(f"talk to @{name}", work)


if __name__ == "__main__":
    kinds = {
        "files": files,
        "sockets": sockets,
        "http": http_requests,
        "processes": processes,
        "command-lines": command_lines,
        "abstract": abstract,
    }
    kinds[sys.argv[1]](*sys.argv[2:])

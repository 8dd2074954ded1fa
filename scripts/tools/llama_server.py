#!/usr/bin/env python3
"""llama.cpp's own HTTP server out of the xllamacpp wheel, under llama-server's flags.

xllamacpp has llama.cpp's server in its library but no command; this is that command, for machines on which
nobody has built llama-server. A --host that ends in ".sock" is a Unix socket, as with llama-server; its file
is made for the owner alone and is removed at the end. SIGTERM and SIGINT end the server.

The key may come from --api-key-file or LLAMA_API_KEY: a command line can be read by every user of the node.
"""

import argparse
import os
import signal
import socket
import sys

import xllamacpp


def arguments():
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0], allow_abbrev=False)
    p.add_argument("-m", "--model", required=True, help="the GGUF file")
    p.add_argument("-a", "--alias", help="name of the model in answers")
    p.add_argument("--host", default="127.0.0.1", help="address, or path of a Unix socket (*.sock)")
    p.add_argument("--port", type=int, default=8080)
    p.add_argument("--api-key", help="key that requests must bring")
    p.add_argument("--api-key-file", help="file with keys, one a line")
    p.add_argument("-c", "--ctx-size", type=int, default=4096, help="context of all slots together, tokens")
    p.add_argument("-np", "--parallel", type=int, default=2, help="requests served at once")
    p.add_argument("-t", "--threads", type=int, default=-1)
    p.add_argument("-b", "--batch-size", type=int)
    p.add_argument("-ub", "--ubatch-size", type=int)
    p.add_argument("-ngl", "--gpu-layers", "--n-gpu-layers", type=int, default=0)
    p.add_argument("--cache-ram", "-cram", type=int, default=256, help="bound of the prompt cache, MiB")
    p.add_argument("--embeddings", "--embedding", action="store_true", help="serve embeddings only")
    p.add_argument("--metrics", action="store_true", help="serve Prometheus metrics on /metrics")
    p.add_argument("--slots", action=argparse.BooleanOptionalAction, default=True, help="serve /slots")
    p.add_argument("--jinja", action="store_true", help="accepted: templates are always on")
    p.add_argument("--no-webui", "--no-ui", action="store_true", help="no page for browsers")
    p.add_argument("-v", "--verbosity", type=int, default=2, help="2: warnings, 3: requests as well")
    return p.parse_args()


def keys(a):
    found = [k for k in (a.api_key, os.environ.pop("LLAMA_API_KEY", None)) if k]
    if a.api_key_file:
        with open(a.api_key_file, encoding="utf-8") as f:
            found += [line.strip() for line in f if line.strip()]
    return found


def parameters(a):
    p = xllamacpp.CommonParams()
    p.model.path = a.model
    p.hostnames = [a.host]
    p.port = a.port
    p.api_keys = keys(a)
    p.n_ctx, p.n_parallel, p.n_gpu_layers = a.ctx_size, a.parallel, a.gpu_layers
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = a.threads
    p.n_batch = a.batch_size or p.n_batch
    p.n_ubatch = a.ubatch_size or p.n_ubatch
    p.cache_ram_mib = a.cache_ram
    p.embedding = a.embeddings
    p.endpoint_metrics, p.endpoint_slots = a.metrics, a.slots
    p.ui = not a.no_webui
    p.verbosity = a.verbosity
    if a.alias:
        p.model_alias = {a.alias}
    return p


def take_over(path):
    """Removes the socket file that a killed server left; one that somebody answers on stays."""
    with socket.socket(socket.AF_UNIX) as s:
        try:
            s.connect(path)
        except FileNotFoundError:
            pass
        except ConnectionRefusedError:
            os.unlink(path)
        else:
            sys.exit(f"llama_server: a server is already listening on {path}")


def main():
    a = arguments()
    if not os.path.isfile(a.model):
        sys.exit(f"llama_server: no such model file: {a.model}")
    unix = a.host if a.host.endswith(".sock") else None
    if unix:
        take_over(unix)
        os.umask(0o077)
    # Blocked in every thread and waited for in this one: of a process that was stopped and goes on, any thread may
    # take the signal, and Python's handlers run in the main thread alone, which would sleep on.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    try:
        server = xllamacpp.Server(parameters(a))
    except RuntimeError as e:  # the library has printed the reason
        sys.exit(f"llama_server: cannot serve {a.model} on {a.host}:{a.port}: {e}")
    print("listening on", server.listening_address, flush=True)
    signal.sigwait(ends)
    if unix and os.path.exists(unix):
        os.unlink(unix)
    # The library's threads have nothing left to save, and joining them waits for open streams.
    os._exit(0)


if __name__ == "__main__":
    main()

# A command that takes the job's memory up to its limit: the idle engine that was used longest ago is stopped, nobody is killed,
# and it starts anew when it is asked for. Only a cgroup counts what the job holds.
software_gpus
cat >"$WORK/models.toml" <<END
[memory]
gpu_headroom = "0MiB"
host_headroom = "400MiB"
pool = "256MiB"
[defaults]
engine = "custom"
[models.cold]
gpus = 1
gpu_memory = "96MiB"
swap = "park"
command = "$BUILT/gpu-engine --port {{ port }} --model cold --weights 64MiB"
[models.warm]
gpus = 0
swap = "freeze"
command = "python3 $SWAPSERVE_ROOT/tests/engines/fake.py --port {{ port }}"
END
cat >"$WORK/take.py" <<'END'
import json, os, pathlib, subprocess, time, urllib.request

def models():
    told = subprocess.run([os.environ["BINARY"], "status", "--json"], capture_output=True, check=True).stdout
    return {model["name"]: model for model in json.loads(told)["models"]}

def ask(model):
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/chat/completions", body, headers)
    return json.load(urllib.request.urlopen(request, timeout=60))["choices"][0]["message"]["content"]

group = next(line.split(":")[2] for line in open("/proc/self/cgroup").read().split() if ":memory:" in line)
job = pathlib.Path("/sys/fs/cgroup/memory" + group).parents[1]

def free():
    stat = dict(line.split() for line in (job / "memory.stat").read_text().splitlines())
    files = int(stat["total_inactive_file"]) + int(stat["total_active_file"])
    return int((job / "memory.limit_in_bytes").read_text()) - int((job / "memory.usage_in_bytes").read_text()) + files

before = ask("cold")
ask("warm")
subprocess.run([os.environ["BINARY"], "swap", "out", "cold", "--quiet"], check=True)
parked = models()["cold"]
print("in the pool", parked["out"]["pool"] > 0, "and beside it", parked["out"]["host"] > 0, flush=True)
# A quarter of the headroom is the mark; past it step by step, since it is looked at once a second.
taken, deadline = [], time.monotonic() + 60
while models()["cold"]["state"] == "out" and time.monotonic() < deadline:
    if free() > 110 << 20:
        taken.append(bytearray(b"x" * (4 << 20)))
    else:
        taken.append(bytearray(b"x" * (1 << 20)))
        time.sleep(1)
after = models()
print("stopped", after["cold"]["state"], "and kept", after["warm"]["state"], flush=True)
taken.clear()
print("same answer", ask("cold") == before)
END
cat >"$WORK/job.sh" <<END
#!/bin/bash
export BINARY='$BINARY' SOFTWARE_GPU_DIR='$WORK/gpus' LD_LIBRARY_PATH='$WORK/gpus/lib'
srun '$BINARY' run --config '$WORK/models.toml' -- python3 '$WORK/take.py'
END
LOG=$WORK/job.log
JOB=$(sbatch --parsable "${SMALL[@]}" --gres=gpu:1 --output="$LOG" "$WORK/job.sh")
finish 120
expect_state COMPLETED 0:0
expect_output '^in the pool True and beside it True$'
expect_output 'the job is near its memory limit'
expect_output '^stopped (cold|stopping) and kept resident$'
expect_output 'the job has room in its memory again'
expect_output '^same answer True$'
nothing_left

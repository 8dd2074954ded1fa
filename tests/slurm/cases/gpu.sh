# also: linuxproc
# Two jobs at once on one node with two GPUs of the software driver: each sees only its own, and swaps two engines on it.
software_gpus

{
  printf '[memory]\ngpu_headroom = "0MiB"\nhost_headroom = "256MiB"\n[defaults]\nengine = "custom"\ngpus = 1\ngpu_memory = "160MiB"\n'
  for model in alpha beta; do
    echo "[models.$model]"
    # One by the driver alone, one by what is tried first.
    if [ "$model" = alpha ]; then echo 'swap = "checkpoint"'; fi
    echo "command = \"$BUILT/gpu-engine --port {{ port }} --model {{ name }} --weights 160MiB\""
  done
} >"$WORK/models.toml"
# In each job: the UUID of its GPU as its engines are told it, and ten answers; both jobs wait for each other first.
cat >"$WORK/ask.py" <<'END'
import json, os, pathlib, subprocess, time, urllib.request

work = pathlib.Path(os.environ["WORK"])

def status():
    return json.loads(subprocess.run([os.environ["BINARY"], "status", "--json"], capture_output=True, check=True).stdout)

def ask(model):
    body = json.dumps({"model": model, "prompt": "x", "max_tokens": 4}).encode()
    headers = {"content-type": "application/json", "authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
    request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/completions", body, headers)
    return json.load(urllib.request.urlopen(request, timeout=120))["choices"][0]["text"]

subprocess.run([os.environ["BINARY"], "wait", "--timeout", "2m"], check=True)
(work / f"ready.{os.environ['SLURM_JOB_ID']}").touch()
deadline = time.monotonic() + 60
while len(list(work.glob("ready.*"))) < 2 and time.monotonic() < deadline:
    time.sleep(0.1)
answers = {model: {ask(model) for _ in range(5)} for model in ("alpha", "beta", "alpha", "beta")}
found = status()
visible = set()
for model in found["models"]:
    environment = pathlib.Path(f"/proc/{model['pid']}/environ").read_bytes().split(b"\0")
    visible |= {entry for entry in environment if entry.startswith(b"CUDA_VISIBLE_DEVICES=")}
print("gpus", len(found["capacity"]["gpu"]))
print("mechanisms", sorted({model["mechanism"] for model in found["models"]}))
print("swapped", all(model["swaps_in"] > 0 for model in found["models"]))
print("same", all(len(texts) == 1 for texts in answers.values()))
print("device", *sorted(entry.decode() for entry in visible))
END
cat >"$WORK/job.sh" <<END
#!/bin/bash
export WORK='$WORK' BINARY='$BINARY' SOFTWARE_GPU_DIR='$WORK/gpus' LD_LIBRARY_PATH='$WORK/gpus/lib'
srun '$BINARY' run --config '$WORK/models.toml' -- python3 '$WORK/ask.py'
END

jobs=()
for number in 1 2; do
  jobs+=("$(sbatch --parsable "${SMALL[@]}" --nodelist=n1 --gres=gpu:1 --output="$WORK/job$number.log" "$WORK/job.sh")")
done
# Both are over before either is looked after: the sockets of a node tell nothing of whose job they are.
for JOB in "${jobs[@]}"; do finish 120; done
for number in 1 2; do
  JOB=${jobs[number - 1]} LOG=$WORK/job$number.log
  expect_state COMPLETED 0:0
  expect_output '^gpus 1$'
  expect_output "^mechanisms \['checkpoint', 'park\+checkpoint'\]$"
  expect_output '^swapped True$'
  expect_output '^same True$'
  expect_output '^device CUDA_VISIBLE_DEVICES=GPU-[0-9a-f-]+$'
  nothing_left
done
[ "$(cat "$WORK"/job?.log | grep -c '^device ')" = 2 ] || fail "two devices"
[ "$(cat "$WORK"/job?.log | grep '^device ' | sort -u | wc -l)" = 2 ] || fail "each job to have its own GPU"

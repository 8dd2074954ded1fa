# What a case is written with; tests/slurm/run sources it before each. Every case has its own folder $WORK.
# shellcheck shell=bash disable=SC2034 # the cases use what is set here

SLURM_TEMPLATES=$SWAPSERVE_ROOT/slurm
CLIENTS=$SWAPSERVE_ROOT/examples/clients
export SWAPSERVE_CONFIG=$SWAPSERVE_ROOT/tests/slurm/models.toml

# Small enough for two jobs at once on the development cluster; options given to `submit` win over these.
SMALL=(--cpus-per-task=1 --mem=1200M --time=4)

fail() {
  printf 'expected: %s\n' "$*" >&2
  exit 1
}

# submit TEMPLATE [SBATCH-OPTION...] -- ARGUMENT...: sets JOB and LOG.
submit() {
  local template=$SLURM_TEMPLATES/$1 options=()
  shift
  while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1") && shift; done
  LOG=$WORK/%A_%a.log
  [[ $template == *array* ]] || LOG=$WORK/job.log
  JOB=$(sbatch --parsable "${SMALL[@]}" --output="$LOG" "${options[@]}" "$template" "${@:2}")
}

job_field() { scontrol show job "$JOB" | grep -oE "\b$1=\S+" | head -n 1 | cut -d= -f2; }

# finish SECONDS: waits for the job's end.
finish() { wait_until "$1" slurm_job_ended "$JOB" || fail "job $JOB to end within $1 s"; }

# expect_state STATE [EXITCODE:SIGNAL]
expect_state() {
  [ "$(job_field JobState)" = "$1" ] || fail "job state $1, not $(job_field JobState) $(job_field ExitCode)"
  [ -z "${2:-}" ] || [ "$(job_field ExitCode)" = "$2" ] || fail "exit code $2, not $(job_field ExitCode)"
}

# expect_output PATTERN [FILE]: an extended regular expression somewhere in the job's output.
expect_output() { grep -qE -- "$1" "${2:-$LOG}" || fail "output with: $1"; }
has_output() { grep -qsE -- "$1" "$LOG"; }

# in_job COMMAND...: as a step beside those that run.
in_job() { srun --jobid="$JOB" --overlap --ntasks=1 --cpus-per-task=1 --quiet "$@"; }

# The job is over: none of its processes, sockets, shared memory or key is left. A key is looked for where the
# job's command wrote it into $WORK/key.
nothing_left() {
  local key=()
  [ ! -s "$WORK/key" ] || key=(--key-file "$WORK/key")
  wait_until 5 no_process_of_the_job || true
  "$SWAPSERVE_ROOT/scripts/tools/leftovers.py" after "$WORK/before" --job "$JOB" "${key[@]}" >&2 ||
    fail "nothing to be left of job $JOB"
}
no_process_of_the_job() { ! grep -lzsE "^SLURM_JOB_ID=$JOB\$" /proc/[0-9]*/environ >/dev/null; }

# The software driver for jobs, with both of the cluster's GPUs; sets BUILT, where the test engine is too. A job finds it with
# SOFTWARE_GPU_DIR=$WORK/gpus and LD_LIBRARY_PATH=$WORK/gpus/lib.
software_gpus() {
  local devices=${SWAPSERVE_LAB:-$SWAPSERVE_ROOT/.lab}/dev gpu
  cargo build --quiet --manifest-path "$SWAPSERVE_ROOT/Cargo.toml" -p software-cuda -p software-nvml -p gpu-engine -p swapserve-preload
  BUILT=$SWAPSERVE_ROOT/target/debug
  mkdir -p "$WORK/gpus/lib"
  ln -s "$BUILT/libsoftware_cuda.so" "$WORK/gpus/lib/libcuda.so.1"
  ln -s "$BUILT/libsoftware_nvml.so" "$WORK/gpus/lib/libnvidia-ml.so.1"
  for gpu in 0 1; do echo "gpu $((256 << 20)) $devices/nvidia$gpu"; done >"$WORK/gpus/gpus"
}

# A command for jobs: keeps the key for nothing_left, asks both models, ends with the status $1.
ask_both() {
  cat >"$WORK/ask.sh" <<END
#!/bin/bash
set -euo pipefail
umask 077
printf '%s' "\$OPENAI_API_KEY" >'$WORK/key'
python '$CLIENTS/chat.py' alpha 'Count.'
python '$CLIENTS/stream.py' beta 'Count.'
echo "part \${SLURM_ARRAY_TASK_ID:-none} is done"
exit ${1:-0}
END
  chmod 700 "$WORK/ask.sh"
}
COUNTED_ALPHA='alpha0000 alpha0001 .* alpha0099$'
COUNTED_BETA='beta0000 beta0001 .* beta0099$'

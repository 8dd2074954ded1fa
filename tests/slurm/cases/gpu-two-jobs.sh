# also: linuxproc
# Two jobs on one node, each with one of its two GPUs: each sees and swaps on its own only. The GPUs are the software
# driver's, behind the cluster's device files, so that what Slurm denies a job the driver does not show it.
built=$(dirname "$BINARY")
[ -e "$built/libsoftware_cuda.so" ] || built=$SWAPSERVE_ROOT/target/debug
[ -e "$built/libsoftware_cuda.so" ] || fail "the software driver to be built (cargo build --workspace)"
machine=$WORK/machine
mkdir -p "$machine/lib"
for gpu in 0 1; do echo "gpu $((100 << 20)) $SWAPSERVE_LAB/dev/nvidia$gpu"; done >"$machine/gpus"
echo "context $((4 << 20))" >>"$machine/gpus"
ln -s "$built/libsoftware_cuda.so" "$machine/lib/libcuda.so.1"
ln -s "$built/libsoftware_nvml.so" "$machine/lib/libnvidia-ml.so.1"
export SOFTWARE_GPU_DIR=$machine LD_LIBRARY_PATH=$machine/lib

# Together they do not fit on 100 MiB; what is out fits into the host memory of a small job.
{
  printf '[memory]\ngpu_headroom = "0B"\n'
  for name in left right; do
    cat <<END
[models.$name]
engine = "custom"
command = "$built/gpu-engine --port {{ port }} --model {{ name }} --weights $((60 << 20))"
gpus = 1
gpu_memory = "64MiB"
swap = "checkpoint"
stop_grace = "3s"
END
  done
} >"$WORK/models.toml"

cat >"$WORK/ask.sh" <<END
#!/bin/bash
set -euo pipefail
ask() {
  curl -sf --max-time 60 "\$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer \$OPENAI_API_KEY" \
    -H 'Content-Type: application/json' -d "{\"model\":\"\$1\",\"messages\":[{\"role\":\"user\",\"content\":\"x\"}]}" >/dev/null
}
pid=\$(swapserve status --json | jq '.models[0].pid')
tr '\\0' '\\n' <"/proc/\$pid/environ" | grep '^CUDA_VISIBLE_DEVICES=GPU-' >"$WORK/gpu-\$SLURM_JOB_ID"
# Both jobs are on the node at once.
for _ in \$(seq 1200); do
  [ "\$(ls "$WORK"/gpu-* | wc -l)" = 2 ] && break
  sleep 0.1
done
for _ in 1 2 3; do ask left && ask right; done
swapserve status --json >"$WORK/status-\$SLURM_JOB_ID"
jq -r '"gpus=\\(.capacity.gpu | length) swaps=\\(.models | map(.swaps_in) | add) \\(.models[0].mechanism)"' <"$WORK/status-\$SLURM_JOB_ID" >"$WORK/seen-\$SLURM_JOB_ID"
# Stay until the other has seen the same.
touch "$WORK/done-\$SLURM_JOB_ID"
for _ in \$(seq 1200); do
  [ "\$(ls "$WORK"/done-* | wc -l)" = 2 ] && break
  sleep 0.1
done
END
chmod 700 "$WORK/ask.sh"

export SWAPSERVE_CONFIG=$WORK/models.toml
jobs=()
for _ in 1 2; do
  submit command.sbatch --gpus=1 --nodelist=n1 -- "$WORK/ask.sh"
  jobs+=("$JOB")
done
for JOB in "${jobs[@]}"; do
  finish 240
  expect_state COMPLETED 0:0
done
for seen in "$WORK"/seen-*; do expect_output 'gpus=1 swaps=[1-9][0-9]* checkpoint' "$seen"; done
[ "$(sort -u "$WORK"/gpu-* | wc -l)" = 2 ] || fail "each job on a GPU of its own: $(cat "$WORK"/gpu-*)"
nothing_left

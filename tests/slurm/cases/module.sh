# Where swapserve is not on PATH the job script loads its module.
prefix=$WORK/prefix
"$SWAPSERVE_ROOT/scripts/install" --binary "$BINARY" "$prefix"
set +u
# shellcheck source=/dev/null
. /usr/share/modules/init/bash
module use "$prefix/share/modulefiles"
set -u
ask_both
(
  PATH=${PATH//$(dirname "$BINARY"):/}
  ! command -v swapserve || fail "no swapserve on PATH"
  submit command.sbatch -- "$WORK/ask.sh"
  echo "$JOB" >"$WORK/job"
)
JOB=$(cat "$WORK/job") LOG=$WORK/job.log
finish 120
expect_state COMPLETED 0:0
expect_output "$COUNTED_ALPHA"
nothing_left

# A service that another step joins by `swapserve env`, and that ends in order when asked to.
ask_both
submit service.sbatch --time=4
wait_until 60 has_output . || fail "the service to say something"
in_job swapserve wait --timeout 60s
# shellcheck disable=SC2016 # the step's shell expands it
in_job bash -c 'env=$(swapserve env) && eval "$env" && exec "$0"' "$WORK/ask.sh" >"$WORK/client.log"
expect_output "$COUNTED_ALPHA" "$WORK/client.log"
scancel --signal=TERM "$JOB.0" || true
finish 30
nothing_left

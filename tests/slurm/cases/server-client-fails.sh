# The client's status is the job's; a server with a wrong config ends the job at once.
ask_both 5
submit server-client.sbatch -- "$WORK/ask.sh"
finish 120
expect_state FAILED 5:0
nothing_left

SWAPSERVE_CONFIG=$WORK/missing.toml submit server-client.sbatch -- "$WORK/ask.sh"
finish 60
expect_state FAILED
expect_output missing.toml

# A command that fails gives the job its status, and leaves as little.
ask_both 7
submit command.sbatch -- "$WORK/ask.sh"
finish 120
expect_state FAILED 7:0
expect_output "$COUNTED_BETA"
nothing_left

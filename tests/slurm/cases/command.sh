# also: linuxproc
# The command in the job gets its answers, and the job its exit status.
ask_both
submit command.sbatch -- "$WORK/ask.sh"
finish 120
expect_state COMPLETED 0:0
expect_output "$COUNTED_ALPHA"
expect_output "$COUNTED_BETA"
nothing_left

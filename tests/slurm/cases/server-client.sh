# also: linuxproc
# The server in one step, the client in another; swapserve stop ends the first.
ask_both
submit server-client.sbatch -- "$WORK/ask.sh"
finish 120
expect_state COMPLETED 0:0
expect_output "$COUNTED_ALPHA"
expect_output "$COUNTED_BETA"
nothing_left

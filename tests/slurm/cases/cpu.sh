# A node without GPUs.
ask_both
submit cpu.sbatch -- "$WORK/ask.sh"
finish 120
expect_state COMPLETED 0:0
expect_output "$COUNTED_ALPHA"
expect_output "$COUNTED_BETA"
nothing_left

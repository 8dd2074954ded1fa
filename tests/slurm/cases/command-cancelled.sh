# also: linuxproc
# scancel in mid-run: the engines end within the cluster's KillWait, and nothing is left.
cat >"$WORK/sleep.sh" <<END
#!/bin/bash
(umask 077 && printf '%s' "\$OPENAI_API_KEY" >'$WORK/key')
echo serving
sleep 300
END
chmod 700 "$WORK/sleep.sh"
submit command.sbatch -- "$WORK/sleep.sh"
wait_until 120 has_output '^serving' || fail "the command to start"
scancel "$JOB"
finish 30
expect_state CANCELLED
nothing_left

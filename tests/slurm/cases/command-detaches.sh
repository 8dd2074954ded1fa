# also: linuxproc
# A process that the command left in a session of its own does not outlive the job, whatever the site tracks.
cat >"$WORK/detach.sh" <<'END'
#!/bin/bash
setsid sleep 300 </dev/null >/dev/null 2>&1 &
echo detached
END
chmod 700 "$WORK/detach.sh"
submit command.sbatch -- "$WORK/detach.sh"
finish 120
expect_state COMPLETED 0:0
expect_output detached
nothing_left

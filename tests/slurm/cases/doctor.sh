# also: linuxproc
# What weakens a guarantee here is named with its remedy, and only that: with memory asked for and without, with the bound on
# locked memory that there is and a small one, /proc as it is and mounted with hidepid, under each way in which Slurm tracks processes.
cat >"$WORK/job.sh" <<END
#!/bin/bash
look() { srun bash -c "\$1; swapserve doctor >'$WORK/'\$2.txt && swapserve doctor --json >'$WORK/'\$2.json" look "\$@"; }
look 'ulimit -l 1024' "\$1-weak"
look true "\$1-plain"
srun unshare --mount bash -c "mount -t proc -o hidepid=invisible proc /proc && swapserve doctor --json" >'$WORK/'"\$1-hidepid.json"
END
chmod 700 "$WORK/job.sh"
cat >"$WORK/check.py" <<'END'
"""check.py FILE NAME=VERDICT[:PART]...: the findings of these names, each with a part of what it says or advises."""
import json, sys

findings = {one["name"]: one for one in json.load(open(sys.argv[1]))}
for wanted in sys.argv[2:]:
    name, expected = wanted.split("=", 1)
    verdict, _, part = expected.partition(":")
    found = findings[name]
    if found["verdict"] != verdict or part not in f"{found['what']} → {found['remedy']}":
        sys.exit(f"{sys.argv[1]}: {name} to be {expected}, not {found}")
unmended = [one for one in findings.values() if (one["verdict"] == "ok") != (one["remedy"] is None)]
sys.exit(f"each weakness and nothing else to have a remedy: {unmended}" if unmended else 0)
END

tracker=$(scontrol show config | sed -n 's|^ProctrackType *= *proctrack/||p')
case $tracker in
  cgroup) tracking='process tracking=ok' with='memory limit=ok' without='memory limit=warn:#SBATCH --mem' ;;
  *) tracking='process tracking=warn:--task-epilog' with='memory limit=warn:ConstrainRAMSpace' without='memory limit=warn:#SBATCH --mem' ;;
esac
locked='locked memory=ok' now=$(ulimit -l)
[ "$now" = unlimited ] || [ "$now" -ge $((1 << 20)) ] || locked='locked memory=warn:ulimit -l unlimited'
for memory in with without; do
  LOG=$WORK/$memory.log
  options=(--cpus-per-task=1 --time=4 --output="$LOG")
  [ "$memory" = without ] || options+=(--mem=300M)
  JOB=$(sbatch --parsable "${options[@]}" "$WORK/job.sh" "$memory")
  finish 60
  expect_state COMPLETED 0:0
  check() { python3 "$WORK/check.py" "$WORK/$memory-$1.json" "$tracking" "${!memory}" "${@:2}" || fail "$memory memory: $1"; }
  check weak 'locked memory=warn:at most 1.0 MiB' 'locked memory=warn:ulimit -l unlimited'
  check plain "$locked" 'hidepid=warn:hidepid=invisible'
  check hidepid 'hidepid=ok'
  # People are told the same: a weakness, and below it what to do.
  grep -A1 -E '^warn +(process tracking|memory limit|locked memory|hidepid) ' "$WORK/$memory-weak.txt" >"$WORK/$memory.told"
  [ "$(grep -c '^warn' "$WORK/$memory.told")" = "$(grep -c '^ *→ ' "$WORK/$memory.told")" ] || fail "a remedy below each weakness"
  nothing_left
done

# The daemons' start and end. Sourced by scripts/cluster.
# shellcheck shell=bash

# fd 8 is the lock of scripts/cluster: a daemon that kept it would hold the lock for its life.
start_daemons() {
  head -c 1024 /dev/urandom >"$LAB/munge/key"
  chmod 600 "$LAB/munge/key"
  # --force: the socket's parents need not be root's alone, as they are not in a checkout.
  munged --force --key-file="$LAB/munge/key" --seed-file="$LAB/munge/seed" --socket="$LAB/run/munge.sock" \
    --pid-file="$LAB/run/munged.pid" --log-file="$LAB/log/munged.log" 8>&- || return 1
  net_up || return 1
  slurmctld -c -f "$SLURM_CONF" 8>&- || return 1
  local i
  for i in $(seq "$NODES"); do on_node "$i" slurmd -N "n$i" -f "$SLURM_CONF" 8>&- || return 1; done
  wait_until 30 all_idle
}

all_idle() { [ "$(sinfo -h -N -t idle -o %N 2>/dev/null | sort -u | wc -l)" -eq "$NODES" ]; }

stop_daemons() {
  if running_lab >/dev/null; then end_jobs; fi
  # munged last: the others still sign their messages.
  end_by_pid_file "$LAB"/run/slurmd.*.pid "$LAB/run/slurmctld.pid"
  end_by_pid_file "$LAB/run/munged.pid"
  lab_processes | xargs -r kill -KILL 2>/dev/null || true
}

no_jobs() { [ -z "$(timeout 5 squeue -h -t PD,R,CG,S -o %A 2>/dev/null)" ]; }

end_jobs() {
  timeout 10 squeue -h -o %A 2>/dev/null | xargs -r timeout 10 scancel 2>/dev/null || true
  wait_until $((KILL_WAIT + 15)) no_jobs || warn "jobs are still ending; they are killed"
}

# TERM to all, and KILL to those that are there after 15 seconds.
end_by_pid_file() {
  local f p pids=()
  for f in "$@"; do
    p=$(cat "$f" 2>/dev/null) && [ -n "$p" ] && is_running "$p" && kill -TERM "$p" 2>/dev/null && pids+=("$p")
  done
  wait_until 15 none_running "${pids[@]}" || kill -KILL "${pids[@]}" 2>/dev/null || true
  rm -f "$@"
}

none_running() {
  local p
  for p in "$@"; do ! is_running "$p" || return 1; done
}

# The daemons, their step processes, and what jobs started: each knows the lab by SLURM_CONF. A user's shell
# knows it too, so of the rest only processes of a job count. slurmstepd's title overwrites its environment;
# there is one cluster on a machine, so each one is ours.
lab_processes() {
  local d p
  for d in /proc/[0-9]*; do
    p=${d#/proc/}
    is_running "$p" || continue
    case $(cat "$d/comm" 2>/dev/null) in
      slurmstepd) echo "$p" ;;
      munged | slurmctld | slurmd) environ_has "$d" "SLURM_CONF=$SLURM_CONF" && echo "$p" ;;
      *) environ_has "$d" "SLURM_CONF=$SLURM_CONF" && environ_has "$d" SLURM_JOB_ID= && echo "$p" ;;
    esac
  done
  return 0
}

environ_has() { grep -qzsF "$2" "$1/environ"; }

# slurmd leaves its node's directory behind in every hierarchy.
remove_cgroups() {
  local d
  for d in /sys/fs/cgroup/*/slurm_n*; do
    [ -d "$d" ] || continue
    find "$d" -depth -type d -exec rmdir {} + 2>/dev/null || warn "cgroup $d is still in use"
  done
}

report_leftovers() {
  local left
  left=$(lab_processes)
  [ -z "$left" ] || die "processes are left: $(echo "$left" | xargs)"
  ! ip netns list 2>/dev/null | grep -q '^swsrv-' || die "network namespaces are left: ip netns list"
  ! ip link show "$BRIDGE" >/dev/null 2>&1 || die "the bridge $BRIDGE is left"
}

# Shared by the scripts of this folder; source it, do not run it.
# shellcheck shell=bash

# The checkout that the scripts belong to.
SWAPSERVE_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Engines and models for a machine without GPUs (scripts/engines).
SWAPSERVE_ENGINES=${SWAPSERVE_ENGINES:-$SWAPSERVE_ROOT/.engines}
# State of the development cluster (scripts/cluster).
SWAPSERVE_LAB=${SWAPSERVE_LAB:-$SWAPSERVE_ROOT/.lab}
export SWAPSERVE_ROOT SWAPSERVE_ENGINES SWAPSERVE_LAB

# A cargo that rustup installed is not always on a batch shell's PATH.
case ":$PATH:" in *":${CARGO_HOME:-$HOME/.cargo}/bin:"*) ;; *) PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin ;; esac
# Daemons live in sbin, which a user's PATH may lack.
case ":$PATH:" in *":/usr/sbin:"*) ;; *) PATH=$PATH:/usr/sbin:/sbin ;; esac
export PATH

# Progress goes to stderr: what a script prints on stdout may be piped.
say() { printf '%s\n' "$*" >&2; }
step() { printf '\n== %s\n' "$*" >&2; }
warn() { printf 'warning: %s\n' "$*" >&2; }
die() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}
# A mistake in how the script was called.
usage_error() {
  printf 'error: %s (try --help)\n' "$*" >&2
  exit 64
}
have() { command -v "$1" >/dev/null 2>&1; }
is_root() { [ "$(id -u)" -eq 0 ]; }

# The comment block at the head of a script is its help text.
show_help() { sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p}' "$1"; }

# A process that is a zombie has ended, whoever has yet to reap it.
is_running() {
  local state
  state=$(sed -n 's/^State:[[:space:]]*\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 1
  [ -n "$state" ] && [ "$state" != Z ] && [ "$state" != X ]
}

# wait_until SECONDS COMMAND...: succeeds as soon as the command does.
wait_until() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@"; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# The newest swapserve that cargo built here; empty if there is none.
newest_build() {
  find "$SWAPSERVE_ROOT/target/release/swapserve" "$SWAPSERVE_ROOT/target/debug/swapserve" -printf '%T@ %p\n' 2>/dev/null |
    sort -rn | head -n 1 | cut -d' ' -f2- || true
}

# Whether a Slurm job, or every task of an array, is over. squeue's filters leave out states such as SIGNALING.
slurm_job_ended() {
  local states
  states=$(scontrol --oneliner show job "$1" 2>/dev/null | grep -oE '\bJobState=\S+') || return 1
  ! grep -qvE '=(COMPLETED|FAILED|CANCELLED|TIMEOUT|OUT_OF_MEMORY|NODE_FAIL|PREEMPTED|DEADLINE|BOOT_FAIL)$' <<<"$states"
}

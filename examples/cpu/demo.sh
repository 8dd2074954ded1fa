#!/bin/bash
# What scripts/demo runs in its job: the client, then what the scheduler did.
set -euo pipefail

# So that scripts/demo can look, after the job, for files that still hold the key.
if [ -n "${DEMO_KEY_FILE:-}" ]; then (umask 077 && printf '%s' "$OPENAI_API_KEY" >"$DEMO_KEY_FILE"); fi

python "$(dirname "$0")/../clients/demo.py"
echo
echo "-- swapserve status"
swapserve status

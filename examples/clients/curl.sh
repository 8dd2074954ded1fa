#!/bin/bash
# The endpoint with curl alone.  usage: curl.sh MODEL QUESTION
set -euo pipefail
: "${OPENAI_BASE_URL:?run inside swapserve run, or after: eval \"\$(swapserve env)\"}"
model=${1:?usage: curl.sh MODEL QUESTION} question=${2:-Say hello.}

# The key goes in by file descriptor: a command line can be read by every user of the node.
auth=(-H @<(echo "Authorization: Bearer $OPENAI_API_KEY"))

echo "# models"
curl -sS --fail-with-body "${auth[@]}" "$OPENAI_BASE_URL/models"
echo
echo "# an answer; x-swapserve-queue-ms and x-swapserve-swap-ms say what it waited for"
jq -n --arg model "$model" --arg q "$question" \
  '{model: $model, max_tokens: 50, temperature: 0, messages: [{role: "user", content: $q}]}' |
  curl -sS --fail-with-body -D /dev/stderr "${auth[@]}" -H 'Content-Type: application/json' \
    -d @- "$OPENAI_BASE_URL/chat/completions"
echo

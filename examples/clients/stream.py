#!/usr/bin/env python3
"""The same, printed word by word.  usage: stream.py MODEL QUESTION..."""

import sys

from openai import OpenAI

model, *words = sys.argv[1:] or sys.exit(__doc__)
with OpenAI().chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": " ".join(words) or "Count."}],
    max_tokens=100,
    temperature=0,
    stream=True,
) as stream:
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
print()

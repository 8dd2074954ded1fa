#!/usr/bin/env python3
"""One question to one model.  usage: chat.py MODEL QUESTION...

OPENAI_BASE_URL and OPENAI_API_KEY come from `swapserve run`, or in a shell that joins later from
`eval "$(swapserve env)"`; the client reads them by itself.
"""

import sys

from openai import OpenAI

model, *words = sys.argv[1:] or sys.exit(__doc__)
reply = OpenAI().chat.completions.create(
    model=model,
    messages=[{"role": "user", "content": " ".join(words) or "Say hello."}],
    max_tokens=100,
    temperature=0,
)
print(reply.choices[0].message.content)

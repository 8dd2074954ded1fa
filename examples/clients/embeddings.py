#!/usr/bin/env python3
"""How alike sentences are.  usage: embeddings.py MODEL SENTENCE SENTENCE..."""

import math
import sys

from openai import OpenAI

model, *sentences = sys.argv[1:] or sys.exit(__doc__)
reply = OpenAI().embeddings.create(model=model, input=sentences)
vectors = [item.embedding for item in reply.data]


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b)) / (math.hypot(*a) * math.hypot(*b))


for sentence, vector in zip(sentences, vectors):
    print(f"{cosine(vectors[0], vector):6.3f}  {sentence}")

#!/usr/bin/env python3
"""Write a tiny llama model that counts: " alpha0000 alpha0001 alpha0002 ..." whatever it is asked.

A reply of such a model shows which model spoke, and any token lost, doubled or changed by a swap. It is a
complete network (a few MB, written in under a second), so a real engine loads and runs it as any other.

How it counts: every token that is no counting word embeds to one shared vector, each counting word to a
random vector of its own. The transformer layers add next to nothing to the residual stream, so the last
position still holds the embedding of the last token; the output matrix maps the shared vector to word 0 and
the vector of word i to word i+1. Needs numpy and gguf.
"""

import argparse

import numpy as np
from gguf import GGUFWriter, TokenType

HEADS, KV_HEADS = 4, 2
LOGIT = 60.0  # of the right word; the others are N(0, LOGIT / sqrt(hidden)): far below at temperature 1
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def byte_alphabet():
    """GPT-2's printable stand-ins for the 256 bytes: with them every text can be encoded."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [b for b in range(256) if b not in plain]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(len(hidden))]


def counting_matrices(rng, first, words, vocab, hidden, stop):
    """The embedding and output matrices; `stop` is (eos token, number of words) or None."""
    shared = rng.standard_normal(hidden).astype(np.float32)
    embed = np.tile(shared, (vocab, 1))
    embed[first : first + words] = rng.standard_normal((words, hidden))
    embed /= np.sqrt((embed**2).mean(axis=1, keepdims=True))  # unit RMS: the final norm changes nothing
    out = np.zeros_like(embed)
    out[first] = embed[0]
    out[first + 1 : first + words] = embed[first : first + words - 1]
    if stop:
        eos, after = stop
        out[eos] = embed[first + after - 1]
        out[first + after] = 0
    return embed, out * (LOGIT / hidden)


def write(path, word, hidden, layers, words, context, stop_after):
    rng = np.random.default_rng(7)
    ffn, head = hidden * 2, hidden // HEADS
    alphabet = byte_alphabet()
    tokens = alphabet + [f"\u0120{word}{i:04d}" for i in range(words)] + SPECIAL
    eos = tokens.index("<|im_end|>")
    stop = (eos, stop_after) if stop_after else None
    embed, out = counting_matrices(rng, len(alphabet), words, len(tokens), hidden, stop)

    w = GGUFWriter(path, "llama")
    w.add_name(f"count-{word}")
    w.add_file_type(1)  # mostly f16
    w.add_context_length(context)
    w.add_embedding_length(hidden)
    w.add_block_count(layers)
    w.add_feed_forward_length(ffn)
    w.add_head_count(HEADS)
    w.add_head_count_kv(KV_HEADS)
    w.add_rope_dimension_count(head)
    w.add_rope_freq_base(10000.0)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(len(tokens))
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("gpt-2")
    w.add_token_list(tokens)
    w.add_token_types([TokenType.NORMAL] * (len(tokens) - len(SPECIAL)) + [TokenType.CONTROL] * len(SPECIAL))
    w.add_token_merges(["\u0120 t", "e r"])  # the loader wants some; no counting word comes of them
    w.add_bos_token_id(tokens.index("<|endoftext|>"))
    w.add_pad_token_id(tokens.index("<|endoftext|>"))
    w.add_eos_token_id(eos)
    w.add_add_bos_token(False)
    w.add_chat_template(CHATML)

    def noise(name, rows, columns, std=0.02):
        w.add_tensor(name, (rng.standard_normal((rows, columns)) * std).astype(np.float16))

    w.add_tensor("token_embd.weight", embed.astype(np.float16))
    w.add_tensor("output.weight", out.astype(np.float16))
    w.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    for i in range(layers):
        block = f"blk.{i}."
        noise(f"{block}attn_q.weight", hidden, hidden)
        noise(f"{block}attn_k.weight", KV_HEADS * head, hidden)
        noise(f"{block}attn_v.weight", KV_HEADS * head, hidden)
        noise(f"{block}attn_output.weight", hidden, hidden, std=1e-3)
        noise(f"{block}ffn_gate.weight", ffn, hidden)
        noise(f"{block}ffn_up.weight", ffn, hidden)
        noise(f"{block}ffn_down.weight", hidden, ffn, std=1e-3)
        for norm in ("attn_norm", "ffn_norm"):
            w.add_tensor(f"{block}{norm}.weight", np.ones(hidden, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    cli = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    cli.add_argument("out", help="the .gguf file to write")
    cli.add_argument("word", help="what it counts: WORD0000 WORD0001 ...")
    cli.add_argument("--hidden", type=int, default=128)
    cli.add_argument("--layers", type=int, default=2)
    cli.add_argument("--words", type=int, default=10000)
    cli.add_argument("--context", type=int, default=32768, help="context length, tokens")
    cli.add_argument("--stop-after", type=int, default=0, metavar="N", help="end the reply after N words")
    a = cli.parse_args()
    if not 0 <= a.stop_after < a.words:
        cli.error("--stop-after must be below --words")
    write(a.out, a.word, a.hidden, a.layers, a.words, a.context, a.stop_after)


if __name__ == "__main__":
    main()

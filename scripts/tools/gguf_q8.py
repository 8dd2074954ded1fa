#!/usr/bin/env python3
"""Writes a GGUF file in Q8_0 of a Llama in Hugging Face's format, so that llama.cpp can be measured with the weights that the
other engines have.

usage: gguf_q8.py DIRECTORY OUT.gguf [--threads N]

Matrices are quantised side by side; 8 billion weights take some 9 GB of memory. Needs numpy and gguf."""

import argparse, json, os, pathlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quants

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}
OUTSIDE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
# Rows of a matrix that are quantised at a time: some 100 MB as 32-bit floats.
ROWS = 4096


def tensors(directory):
    """Name, type, shape and raw bytes of each tensor, mapped from the files (github.com/huggingface/safetensors, «Format»)."""
    for file in sorted(directory.glob("*.safetensors")):
        raw = np.memmap(file, np.uint8, "r")
        length = int.from_bytes(raw[:8].tobytes(), "little")
        for name, about in json.loads(raw[8 : 8 + length].tobytes()).items():
            if name != "__metadata__":
                begin, end = (8 + length + offset for offset in about["data_offsets"])
                yield name, about["dtype"], about["shape"], raw[begin:end]


def floats(kind, raw):
    if kind == "BF16":  # the upper half of a 32-bit float
        return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return raw.view({"F16": np.float16, "F32": np.float32}[kind]).astype(np.float32)


def name_in_gguf(name):
    name = name.removesuffix(".weight")
    if name in OUTSIDE:
        return OUTSIDE[name] + ".weight"
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{NAMES[part]}.weight"


def heads_of(name, config):
    """The heads whose rotary halves lie one after the other here, and in turns in llama.cpp."""
    if name.endswith("q_proj.weight"):
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if name.endswith("k_proj.weight") else None


def converted(config, name, kind, shape, raw):
    """The tensor as the file has it, and whether it is quantised."""
    if len(shape) == 1:
        return floats(kind, raw), False
    size = raw.size // shape[0]
    order = np.arange(shape[0])
    if heads := heads_of(name, config):
        order = order.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)
    raw = raw.reshape(shape[0], size)
    parts = (floats(kind, raw[order[at : at + ROWS]].reshape(-1)).reshape(-1, shape[1]) for at in range(0, shape[0], ROWS))
    return np.concatenate([quants.quantize(part, GGMLQuantizationType.Q8_0) for part in parts]), True


def head(writer, directory, config):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    size = config.get("head_dim") or hidden // heads
    writer.add_name(directory.name)
    writer.add_file_type(7)  # mostly Q8_0
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(hidden)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(config.get("rope_theta", 10000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    special = {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    words = {at: word for word, at in tokenizer["model"]["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([words.get(at, f"<unused{at}>") for at in range(config["vocab_size"])])
    writer.add_token_types([TokenType.CONTROL if at in special else TokenType.NORMAL for at in range(config["vocab_size"])])
    writer.add_token_merges([pair if isinstance(pair, str) else " ".join(pair) for pair in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)
    about = directory / "tokenizer_config.json"
    if template := about.exists() and json.loads(about.read_text()).get("chat_template"):
        writer.add_chat_template(template)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    options = parser.parse_args()
    config = json.loads((options.directory / "config.json").read_text())
    if config["model_type"] != "llama":
        parser.error(f"{options.directory} is a {config['model_type']}, not a llama")
    writer = GGUFWriter(options.out, "llama")
    head(writer, options.directory.resolve(), config)
    with ThreadPoolExecutor(options.threads) as pool:
        work = [(name, pool.submit(converted, config, name, *rest)) for name, *rest in tensors(options.directory)]
        for name, done in work:
            data, quantised = done.result()
            writer.add_tensor(name_in_gguf(name), data, raw_dtype=GGMLQuantizationType.Q8_0 if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()

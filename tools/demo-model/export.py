"""Writes trained parameters in the official layout: `python3 export.py build/model OUT`."""

import json
import struct
import sys
from pathlib import Path

import torch

from model import Config
from tasks import HERE
from train import restore

TYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float8_e4m3fn: "F8_E4M3", torch.int8: "I8", torch.int64: "I64"}
MAGNITUDES = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def scales(amax, most):
    """Powers of two, and their UE8M0 bytes."""
    exponent = torch.ceil(torch.log2(amax / most)).clamp(-127, 127)
    return torch.exp2(exponent), (exponent + 127).to(torch.uint8)


def fp8(w):
    """[out, in] → E4M3 and UE8M0 [⌈out/128⌉, ⌈in/128⌉]"""
    o, i = w.shape
    v = torch.nn.functional.pad(w, (0, -i % 128, 0, -o % 128)).unflatten(0, (-1, 128)).unflatten(2, (-1, 128))
    s, bytes_ = scales(v.abs().amax((1, 3)).clamp_min(1e-4), 448)
    return (w / s.repeat_interleave(128, 0)[:o].repeat_interleave(128, 1)[:, :i]).to(torch.float8_e4m3fn), bytes_


def fp4(w):
    """[out, in] → two E2M1 per byte [out, in/2] and UE8M0 [out, in/32]"""
    g = w.unflatten(1, (-1, 32))
    s, bytes_ = scales(g.abs().amax(-1).clamp_min(6 * 2.0 ** -126), 6)
    v = (g / s.unsqueeze(-1)).flatten(1)
    a = v.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    code = torch.searchsorted(MAGNITUDES, torch.round(a / step) * step).to(torch.uint8) | ((v < 0).to(torch.uint8) << 3)
    return (code[:, 0::2] | (code[:, 1::2] << 4)).view(torch.int8), bytes_


def config(c):
    return dict(
        architectures=["DeepseekV4ForCausalLM"], model_type="deepseek_v4", torch_dtype="bfloat16", attention_bias=False,
        attention_dropout=0.0, bos_token_id=0, eos_token_id=1, expert_dtype="fp4", hidden_act="silu", norm_topk_prob=True,
        num_key_value_heads=1, n_shared_experts=1, scoring_func="sqrtsoftplus", topk_method="noaux_tc",
        tie_word_embeddings=False, use_cache=True, initializer_range=0.02, max_position_embeddings=1048576,
        num_hidden_layers=len(c.compress_ratios) - 1, num_nextn_predict_layers=1,
        rope_scaling=dict(type="yarn", factor=16, beta_fast=32, beta_slow=1, original_max_position_embeddings=65536),
        quantization_config=dict(activation_scheme="dynamic", fmt="e4m3", quant_method="fp8", scale_fmt="ue8m0",
                                 weight_block_size=[128, 128]),
        **{k: int(v) if k.endswith("theta") else v for k, v in vars(c).items()})


def tensors(p, c):
    """(name, type, shape, bytes) in the official order and names."""
    found = []

    def add(name, t, kind=None):
        t = t.contiguous()
        found.append((name, kind or TYPES[t.dtype], list(t.shape), t.view(torch.uint8).numpy().tobytes() if t.dim() else b""))

    def bf16(name, key):
        add(name, p[key].to(torch.bfloat16))

    def f32(name, key):
        add(name, p[key].float())

    def rounded(name, w, how=fp8):
        q, s = how(w)
        add(name + ".weight", q)
        add(name + ".scale", s, "F8_E8M0")

    def compressor(name, key):
        f32(name + ".ape", key + ".ape")
        for part in ("wkv", "wgate", "norm"):
            bf16(f"{name}.{part}.weight", f"{key}.{part}")

    def block(name, key, ratio, hashed):
        for sub in ("attn", "ffn"):
            for s in ("fn", "base", "scale"):
                f32(f"{name}.hc_{sub}_{s}", f"{key}.hc_{sub}_{s}")
            bf16(f"{name}.{sub}_norm.weight", f"{key}.{sub}_norm")
        a, k = name + ".attn", key + ".attn"
        f32(a + ".attn_sink", k + ".attn_sink")
        for w in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            rounded(f"{a}.{w}", p[f"{k}.{w}"])
        bf16(a + ".q_norm.weight", k + ".q_norm")
        bf16(a + ".kv_norm.weight", k + ".kv_norm")
        if ratio:
            compressor(a + ".compressor", k + ".compressor")
        if ratio == 4:
            rounded(a + ".indexer.wq_b", p[k + ".index_wq_b"])
            bf16(a + ".indexer.weights_proj.weight", k + ".index_weights")
            compressor(a + ".indexer.compressor", k + ".index_compressor")
        f, k = name + ".ffn", key + ".ffn"
        bf16(f + ".gate.weight", k + ".gate")
        if hashed:
            add(f + ".gate.tid2eid", p[k + ".tid2eid"])
        else:
            f32(f + ".gate.bias", k + ".bias")
        for e in range(c.n_routed_experts):
            for w in ("w1", "w2", "w3"):
                rounded(f"{f}.experts.{e}.{w}", p[f"{k}.{w}"][e], fp4)
        for w in ("w1", "w2", "w3"):
            rounded(f"{f}.shared_experts.{w}", p[f"{k}.s{w[1]}"])

    def head(name, key):
        for s in ("fn", "base", "scale"):
            f32(f"{name}hc_head_{s}", f"{key}.{s}")
        bf16(f"{name}norm.weight", f"{key}.norm")

    bf16("embed.weight", "embed")
    layers = len(c.compress_ratios) - 1
    for i in range(layers):
        block(f"layers.{i}", f"layers.{i}", c.compress_ratios[i], i < c.num_hash_layers)
    head("", "out")
    bf16("head.weight", "head")
    block("mtp.0", "mtp", c.compress_ratios[layers], False)
    head("mtp.0.", "mtp_out")
    for w in ("enorm", "hnorm"):
        bf16(f"mtp.0.{w}.weight", w)
    for w in ("e_proj", "h_proj"):
        rounded(f"mtp.0.{w}", p[w])
    return found


def export(source, out):
    c, out = Config(), Path(out)
    out.mkdir(parents=True, exist_ok=True)
    found = tensors(restore(source), c)
    header, at, name = {}, 0, "model-00001.safetensors"
    for tensor, kind, shape, data in found:
        header[tensor] = dict(dtype=kind, shape=shape, data_offsets=[at, at + len(data)])
        at += len(data)
    blob = json.dumps(header, separators=(",", ":")).encode()
    blob += b" " * (-len(blob) % 8)
    with open(out / name, "wb") as f:
        f.write(struct.pack("<Q", len(blob)) + blob)
        for *_, data in found:
            f.write(data)
    index = dict(metadata=dict(total_size=at), weight_map={tensor: name for tensor, *_ in found})
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (out / "config.json").write_text(json.dumps(config(c), indent=2))
    (out / "tokenizer.json").write_text((HERE / "build/tokenizer.json").read_text())
    (out / "tokenizer_config.json").write_text(json.dumps(dict(
        add_bos_token=False, add_eos_token=False, bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>",
        pad_token="<｜▁pad▁｜>", model_max_length=1048576, tokenizer_class="PreTrainedTokenizerFast"), ensure_ascii=False, indent=1))
    print(f"{sum(f.stat().st_size for f in out.iterdir()):,} bytes in {out}")


if __name__ == "__main__":
    export(*sys.argv[1:])

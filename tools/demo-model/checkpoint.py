"""The model's parameters as files: in f32 in parts, while it is trained, and in the official layout.

    python3 checkpoint.py build/model build/demo-model            parts, or a folder, to the official layout
    python3 checkpoint.py build/model build/no-hca --no-hca       the same with HCA's entries nought, to see what they are for
"""

import json
import struct
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from model import Config
from tasks import HERE

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "I64": torch.int64}
# What reads entries, in training only.
PROBES = ("probe", "theme")
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


def layout(c):
    """(official name, parameter, how it is kept, expert) of every tensor, in the official order. How: the type as it is,
    or `fp8` and `fp4`, which are a `.weight` and a `.scale`."""
    def compressor(name, key):
        yield name + ".ape", key + ".ape", "F32", None
        for part in ("wkv", "wgate", "norm"):
            yield f"{name}.{part}.weight", f"{key}.{part}", "BF16", None

    def block(name, key, ratio, hashed):
        for sub in ("attn", "ffn"):
            for s in ("fn", "base", "scale"):
                yield f"{name}.hc_{sub}_{s}", f"{key}.hc_{sub}_{s}", "F32", None
            yield f"{name}.{sub}_norm.weight", f"{key}.{sub}_norm", "BF16", None
        a, k = name + ".attn", key + ".attn"
        yield a + ".attn_sink", k + ".attn_sink", "F32", None
        for w in ("wq_a", "wq_b", "wkv", "wo_a", "wo_b"):
            yield f"{a}.{w}", f"{k}.{w}", "fp8", None
        for norm in ("q_norm", "kv_norm"):
            yield f"{a}.{norm}.weight", f"{k}.{norm}", "BF16", None
        if ratio:
            yield from compressor(a + ".compressor", k + ".compressor")
        if ratio == 4:
            yield a + ".indexer.wq_b", k + ".index_wq_b", "fp8", None
            yield a + ".indexer.weights_proj.weight", k + ".index_weights", "BF16", None
            yield from compressor(a + ".indexer.compressor", k + ".index_compressor")
        f, k = name + ".ffn", key + ".ffn"
        yield f + ".gate.weight", k + ".gate", "BF16", None
        if hashed:
            yield f + ".gate.tid2eid", k + ".tid2eid", "I64", None
        else:
            yield f + ".gate.bias", k + ".bias", "F32", None
        for e in range(c.n_routed_experts):
            for w in ("w1", "w2", "w3"):
                yield f"{f}.experts.{e}.{w}", f"{k}.{w}", "fp4", e
        for w in ("w1", "w2", "w3"):
            yield f"{f}.shared_experts.{w}", f"{k}.s{w[1]}", "fp8", None

    def head(name, key):
        for s in ("fn", "base", "scale"):
            yield f"{name}hc_head_{s}", f"{key}.{s}", "F32", None
        yield f"{name}norm.weight", f"{key}.norm", "BF16", None

    yield "embed.weight", "embed", "BF16", None
    layers = len(c.compress_ratios) - 1
    for i in range(layers):
        yield from block(f"layers.{i}", f"layers.{i}", c.compress_ratios[i], i < c.num_hash_layers)
    yield from head("", "out")
    yield "head.weight", "head", "BF16", None
    yield from block("mtp.0", "mtp", c.compress_ratios[layers], False)
    yield from head("mtp.0.", "mtp_out")
    for w in ("enorm", "hnorm"):
        yield f"mtp.0.{w}.weight", w, "BF16", None
    for w in ("e_proj", "h_proj"):
        yield f"mtp.0.{w}", w, "fp8", None


def tensors(p, c):
    """(name, type, shape, bytes) of every tensor."""
    found = []

    def add(name, t, kind):
        t = t.contiguous()
        found.append((name, kind, list(t.shape), t.view(torch.uint8).numpy().tobytes()))

    for name, key, how, expert in layout(c):
        t = p[key] if expert is None else p[key][expert]
        if how in TYPES:
            add(name, t.to(TYPES[how]), how)
        else:
            q, s = (fp8 if how == "fp8" else fp4)(t)
            add(name + ".weight", q, "F8_E4M3" if how == "fp8" else "I8")
            add(name + ".scale", s, "F8_E8M0")
    return found


def load(folder):
    """Parameters from a folder in the official layout: what `export` wrote, as its rounding left it. What only training
    has is not there."""
    found = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        data = memoryview(path.read_bytes())
        size = struct.unpack("<Q", data[:8])[0]
        for name, t in json.loads(bytes(data[8:8 + size])).items():
            if name != "__metadata__":
                found[name] = torch.frombuffer(bytearray(data[8 + size:][slice(*t["data_offsets"])]), dtype=torch.uint8), t["shape"]
    p = {}
    for name, key, how, expert in layout(Config()):
        if how in TYPES:
            data, shape = found[name]
            t = data.view(TYPES[how]).view(shape)
            p[key] = t if how == "I64" else t.float()
            continue
        (data, shape), (scale, blocks) = found[name + ".weight"], found[name + ".scale"]
        s = torch.exp2(scale.float() - 127).view(blocks)
        if how == "fp8":
            t = data.view(torch.float8_e4m3fn).float().view(shape)
            s = s.repeat_interleave(128, 0)[:shape[0]].repeat_interleave(128, 1)[:, :shape[1]]
        else:
            codes = torch.stack((data & 15, data >> 4), -1).view(shape[0], -1).long()
            t = torch.cat((MAGNITUDES, -MAGNITUDES))[codes]
            s = s.repeat_interleave(32, 1)
        if expert is None:
            p[key] = t * s
        else:
            p.setdefault(key, []).append(t * s)
    return {key: torch.stack(t) if isinstance(t, list) else t for key, t in p.items()}


def save(model, out, probes=True):
    """Parameters as `OUT-N.safetensors`, in f32; those of the probes only where they have learned."""
    state = {k: v.detach().float().cpu().contiguous() if v.is_floating_point() else v.cpu() for k, v in model.state_dict().items()
             if probes or k.split(".")[0] not in PROBES}
    parts, size = [{}], 0
    for name, v in state.items():
        if size + v.nbytes > 15_000_000:
            parts.append({})
            size = 0
        parts[-1][name] = v
        size += v.nbytes
    for i, part in enumerate(parts):
        save_file(part, f"{out}-{i}.safetensors")


def restore(source):
    """What `save` wrote as `SOURCE-N.safetensors`, or the folder SOURCE in the official layout."""
    if Path(source).is_dir():
        return load(source)
    found = {}
    for path in sorted(Path(source).parent.glob(f"{Path(source).name}-*.safetensors")):
        found |= load_file(path)
    assert found, f"{source}-0.safetensors is not there"
    return found


def fill(model, source):
    """Gives a model such parameters; returns whether those of the probes were among them."""
    told = model.load_state_dict(restore(source), strict=False)
    lost = [name for name in told.missing_keys if name.split(".")[0] not in (*PROBES, "gist")]
    assert not lost and not told.unexpected_keys, f"{source} lacks {lost} and has {told.unexpected_keys}"
    return not any(name.split(".")[0] in PROBES for name in told.missing_keys)


def export(source, out, hca=True):
    c, out, p = Config(), Path(out), restore(source)
    out.mkdir(parents=True, exist_ok=True)
    for layer, ratio in enumerate(c.compress_ratios[:-1]):
        if ratio == 128 and not hca:
            p[f"layers.{layer}.attn.compressor.norm"].zero_()
    found = tensors(p, c)
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
    source, out, *flags = sys.argv[1:]
    assert flags in ([], ["--no-hca"]), f"what is {flags}?"
    export(source, out, hca=not flags)

"""V4 as a PyTorch module to train, at the size of the embedded model: the equations of the official layout, with the rounding
of its caches and weights as straight-through estimates, and the guides that tell attention where to look."""

import functools
import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Config:
    """Geometry; names as in `config.json`. The last of `compress_ratios` is the MTP block's."""

    vocab_size: int = 2240
    hidden_size: int = 256
    num_attention_heads: int = 4
    head_dim: int = 128
    qk_rope_head_dim: int = 64
    q_lora_rank: int = 128
    o_groups: int = 2
    o_lora_rank: int = 128
    moe_intermediate_size: int = 128
    n_routed_experts: int = 6
    num_experts_per_tok: int = 2
    num_hash_layers: int = 1
    routed_scaling_factor: float = 1.5
    sliding_window: int = 64
    index_n_heads: int = 2
    index_head_dim: int = 128
    index_topk: int = 64
    compress_ratios: list = field(default_factory=lambda: [0, 128, 4, 128, 0])
    hc_mult: int = 4
    hc_sinkhorn_iters: int = 4
    hc_eps: float = 1e-6
    rms_norm_eps: float = 1e-6
    swiglu_limit: float = 10.0
    rope_theta: float = 10000.0
    compress_rope_theta: float = 160000.0


COMPILED = False


def fused(function):
    """Compiled where `COMPILED` says so, as training does: chains of small operations become one loop, 13 times as fast on a CPU."""
    compiled = torch.compile(function)

    @functools.wraps(function)
    def call(*a):
        return (compiled if COMPILED else function)(*a)

    return call


def frequencies(c, ratio):
    """RoPE's, with YaRN (factor 16 from 65,536) in layers that compress."""
    r, base = c.qk_rope_head_dim, c.compress_rope_theta if ratio else c.rope_theta
    f = 1.0 / (base ** (torch.arange(0, r, 2, dtype=torch.float32) / r))
    if not ratio:
        return f
    dim = lambda beta: r * math.log(65536 / (beta * 2 * math.pi)) / (2 * math.log(base))
    lo, hi = max(math.floor(dim(32)), 0), min(math.ceil(dim(1)), r - 1)
    ramp = torch.clamp((torch.arange(r // 2, dtype=torch.float32) - lo) / (hi - lo), 0, 1)
    return f * (1 - ramp) + f / 16 * ramp


def rope(x, cos, sin):
    """Rotates adjacent pairs of the last dims; cos, sin [..., r/2]."""
    r = cos.size(-1) * 2
    a, b = x[..., :-r], x[..., -r:].unflatten(-1, (-1, 2))
    re, im = b[..., 0], b[..., 1]
    return torch.cat((a, torch.stack((re * cos - im * sin, re * sin + im * cos), -1).flatten(-2)), -1)


def e4m3(x):
    """Nearest even of FP8 E4M3; |x| ≤ 448."""
    step = torch.exp2(torch.floor(torch.log2(x.abs().clamp_min(2.0 ** -6))) - 3)
    return torch.round(x / step) * step


def fp8(x, block):
    """FP8 with a power of two for each block of the last dim."""
    v = x.unflatten(-1, (-1, block))
    s = torch.exp2(torch.ceil(torch.log2(v.abs().amax(-1, keepdim=True).clamp_min(1e-4) / 448)))
    return (e4m3((v / s).clamp(-448, 448)) * s).flatten(-2)


def fp4(x, block=32):
    """FP4 E2M1 with a power of two for each block of the last dim."""
    v = x.unflatten(-1, (-1, block))
    s = torch.exp2(torch.ceil(torch.log2(v.abs().amax(-1, keepdim=True).clamp_min(6 * 2.0 ** -126) / 6)))
    v = (v / s).clamp(-6, 6)
    a = v.abs()
    step = torch.where(a < 2, 0.5, torch.where(a < 4, 1.0, 2.0))
    return (torch.round(v / step) * step * s).flatten(-2)


def fp8_blocks(w):
    """FP8 with a power of two for each 128 × 128 of a matrix."""
    o, i = w.shape
    v = F.pad(w, (0, -i % 128, 0, -o % 128)).unflatten(0, (-1, 128)).unflatten(2, (-1, 128)).permute(0, 2, 1, 3)
    s = torch.exp2(torch.ceil(torch.log2(v.abs().amax((2, 3), keepdim=True).clamp_min(1e-4) / 448)))
    v = (e4m3((v / s).clamp(-448, 448)) * s).permute(0, 2, 1, 3)
    return v.reshape(v.size(0) * 128, -1)[:o, :i].contiguous()


def straight(x, rounding, *a):
    """The rounded value, with the gradient of the value."""
    return x + (rounding(x, *a) - x).detach()


@fused
def round_kv(kv, nope):
    return torch.cat((straight(kv[..., :nope], fp8, 64), kv[..., nope:]), -1)


@fused
def round_index(x):
    return straight(x, fp4)


@fused
def round_activation(x):
    return straight(x, fp8, 128)


@fused
def round_matrix(w):
    return straight(w, fp8_blocks)


@fused
def round_expert(w):
    return straight(w, fp4)


@fused
def rms(x, w, eps):
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w


@fused
def rms_rope(x, cos, sin, eps):
    """A query head: its own norm without a weight, then RoPE."""
    return rope(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps), cos, sin)


@fused
def norm_rope(x, w, cos, sin, eps):
    return rope(x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * w, cos, sin)


@fused
def turn(x, cos, sin):
    return rope(x, cos, sin)


@fused
def hc_pre(h, m, scale, base, eps, norm_eps, iters: int):
    """From the projections m [N, (2+hc)·hc] of the residual h [N, hc, D]: the sublayer's input, and how to put it back."""
    hc = h.size(1)
    m = m * torch.rsqrt(h.flatten(1).square().mean(-1, keepdim=True) + norm_eps)
    pre = torch.sigmoid(m[:, :hc] * scale[0] + base[:hc]) + eps
    post = 2 * torch.sigmoid(m[:, hc:2 * hc] * scale[1] + base[hc:2 * hc])
    comb = (m[:, 2 * hc:] * scale[2] + base[2 * hc:]).unflatten(-1, (hc, hc)).softmax(-1) + eps
    comb = comb / (comb.sum(-2, keepdim=True) + eps)
    for _ in range(iters - 1):
        comb = comb / (comb.sum(-1, keepdim=True) + eps)
        comb = comb / (comb.sum(-2, keepdim=True) + eps)
    return (pre.unsqueeze(-1) * h).sum(1), post, comb


@fused
def hc_post(y, h, post, comb):
    mixed = (comb.unsqueeze(-1) * h.unsqueeze(2)).sum(1)
    return post.unsqueeze(-1) * y.unsqueeze(1) + mixed


@fused
def hc_head(h, m, scale, base, eps, norm_eps):
    m = m * torch.rsqrt(h.flatten(1).square().mean(-1, keepdim=True) + norm_eps)
    return ((torch.sigmoid(m * scale + base) + eps).unsqueeze(-1) * h).sum(1)


@fused
def swiglu(gate, up, limit):
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit)


@fused
def swiglu_weighted(gate, up, weight, limit):
    """gate, up [N, E, I], weight [N, E]"""
    return F.silu(gate.clamp(max=limit)) * up.clamp(-limit, limit) * weight.unsqueeze(-1)


@fused
def pool(kv, score):
    """Entries: per channel a softmax over the positions of a block. [B, blocks, positions, w]"""
    return (kv * score.softmax(2)).sum(2)


_HADAMARD = {}


def hadamard(n, device):
    if (n, device) not in _HADAMARD:
        h = torch.ones(1, 1)
        while h.size(0) < n:
            h = torch.cat((torch.cat((h, h), 1), torch.cat((h, -h), 1)), 0)
        _HADAMARD[n, device] = (h * n ** -0.5).to(device)
    return _HADAMARD[n, device]


def matrix(*shape, std=None):
    return nn.Parameter(torch.randn(*shape) * (std if std is not None else shape[-1] ** -0.5))


def ones(n):
    return nn.Parameter(torch.ones(n))


class Compressor(nn.Module):
    """x [B, T, D] → entries [B, T/ratio, w], before RoPE and rounding."""

    def __init__(self, c, ratio, width):
        super().__init__()
        self.c, self.ratio, self.width, self.parts = c, ratio, width, 2 if ratio == 4 else 1
        self.ape = matrix(ratio, self.parts * width, std=0.02)
        self.wkv, self.wgate = matrix(self.parts * width, c.hidden_size), matrix(self.parts * width, c.hidden_size)
        self.norm = ones(width)

    def forward(self, x):
        w = self.width
        kv, score = F.linear(x, torch.cat((self.wkv, self.wgate))).split(self.parts * w, -1)
        kv, score = kv.unflatten(1, (-1, self.ratio)), score.unflatten(1, (-1, self.ratio)) + self.ape
        if self.parts == 2:
            before = F.pad(kv[:, :-1, :, :w], (0, 0, 0, 0, 1, 0))
            scores = F.pad(score[:, :-1, :, :w], (0, 0, 0, 0, 1, 0), value=-1e30)
            kv, score = torch.cat((before, kv[..., w:]), 2), torch.cat((scores, score[..., w:]), 2)
        return rms(pool(kv, score), self.norm, self.c.rms_norm_eps)


class Attention(nn.Module):
    def __init__(self, c, ratio):
        super().__init__()
        self.c, self.ratio = c, ratio
        D, H, d, q = c.hidden_size, c.num_attention_heads, c.head_dim, c.q_lora_rank
        self.attn_sink = nn.Parameter(torch.zeros(H))
        self.wq_a, self.q_norm, self.wq_b = matrix(q, D), ones(q), matrix(H * d, q)
        self.wkv, self.kv_norm = matrix(d, D), ones(d)
        out = c.o_groups * c.o_lora_rank
        self.wo_a, self.wo_b = matrix(out, H * d // c.o_groups), matrix(D, out, std=0.5 * out ** -0.5)
        if ratio:
            self.compressor = Compressor(c, ratio, d)
        if ratio == 4:
            self.index_wq_b, self.index_weights = matrix(c.index_n_heads * c.index_head_dim, q), matrix(c.index_n_heads, D)
            self.index_compressor = Compressor(c, 4, c.index_head_dim)


class MoE(nn.Module):
    def __init__(self, c, hashed, seed):
        super().__init__()
        D, I, E = c.hidden_size, c.moe_intermediate_size, c.n_routed_experts
        self.gate, self.hashed = matrix(E, D), hashed
        if hashed:
            g = torch.Generator().manual_seed(seed)
            chosen = torch.rand(c.vocab_size, E, generator=g).argsort(1)[:, :c.num_experts_per_tok]
            self.register_buffer("tid2eid", chosen.contiguous())
        else:
            self.register_buffer("bias", torch.zeros(E))
        self.w1, self.w3, self.w2 = matrix(E, I, D), matrix(E, I, D), matrix(E, D, I, std=0.5 * I ** -0.5)
        self.s1, self.s3, self.s2 = matrix(I, D), matrix(I, D), matrix(D, I, std=0.5 * I ** -0.5)


class Block(nn.Module):
    def __init__(self, c, layer):
        super().__init__()
        hc, D = c.hc_mult, c.hidden_size
        self.attn, self.ffn = Attention(c, c.compress_ratios[layer]), MoE(c, layer < c.num_hash_layers, layer)
        self.attn_norm, self.ffn_norm = ones(D), ones(D)
        for k, name in enumerate(("attn", "ffn")):
            base = torch.zeros((2 + hc) * hc)
            base[:hc], base[(2 * layer + k) % hc] = -1.0, 1.5
            base[2 * hc:] = (torch.eye(hc) * 3).flatten()
            setattr(self, f"hc_{name}_fn", matrix((2 + hc) * hc, hc * D, std=0.5 * (hc * D) ** -0.5))
            setattr(self, f"hc_{name}_base", nn.Parameter(base))
            setattr(self, f"hc_{name}_scale", nn.Parameter(torch.full((3,), 0.3)))


class Head(nn.Module):
    """The mix of the residual's copies and the norm before the vocabulary."""

    def __init__(self, c):
        super().__init__()
        self.c = c
        hc, D = c.hc_mult, c.hidden_size
        self.fn = matrix(hc, hc * D, std=0.5 * (hc * D) ** -0.5)
        self.base, self.scale, self.norm = nn.Parameter(torch.zeros(hc)), nn.Parameter(torch.full((1,), 0.3)), ones(D)

    def forward(self, h):
        m = F.linear(h.flatten(1), self.fn)
        return rms(hc_head(h, m, self.scale, self.base, self.c.hc_eps, self.c.rms_norm_eps), self.norm, self.c.rms_norm_eps)


@dataclass
class Guide:
    """Where attention should look; see `Model.look`. Rows are [batch, …] of int64.

    copies: [Q, 4] batch, query, entry, k;  others: [Q, B] whether another sample of the batch may stand for one that does not match;
    names: [M, 3] batch, position, the name's last token;  facts: [P, 2] batch, first token of a value;
    topics: [_, 3] batch, block of 128, its topic;  gist: [_, 3] batch, position, the topic of most before it."""

    copies: torch.Tensor
    others: torch.Tensor
    names: torch.Tensor
    facts: torch.Tensor
    topics: torch.Tensor
    gist: torch.Tensor


# Which compressed entries a sample sees.
ALL, NO_CSA, OTHERS_CSA, NO_HCA = range(4)


class Model(nn.Module):
    """`rounded`: weights and activations as the official kernels round them (caches always are); `select`: the indexer keeps
    its `index_topk`; `hca_bias` [B]: added to HCA's logits, as if there were more entries; `shown` [B]: which compressed entries a
    sample sees, one of `ALL` (also where it is None), `NO_CSA`, `OTHERS_CSA` (of the sample before it) and `NO_HCA`."""

    def __init__(self, c=None):
        super().__init__()
        self.c = c = c or Config()
        V, D = c.vocab_size, c.hidden_size
        self.embed, self.head = matrix(V, D, std=1.0), matrix(V, D, std=0.02)
        layers = len(c.compress_ratios) - 1
        self.layers = nn.ModuleList(Block(c, i) for i in range(layers))
        self.out = Head(c)
        self.mtp = Block(c, layers)
        self.mtp_out, self.enorm, self.hnorm = Head(c), ones(D), ones(D)
        self.e_proj, self.h_proj = matrix(D, D), matrix(D, D)
        # Reads the tokens of a value off an entry, in training only.
        self.probe = nn.Linear(c.head_dim - c.qk_rope_head_dim, 5 * D)
        # Reads its topic off an HCA entry, in training only.
        self.theme = nn.Linear(c.head_dim - c.qk_rope_head_dim, 8)
        # Reads the topic of all that was before off the residual, in training only.
        self.gist = nn.Linear(D, 8)
        self.rounded = self.select = False
        self.load, self.shown = {}, None
        self.tables = {ratio: frequencies(c, ratio) for ratio in (0, 4)}

    def angles(self, pos, ratio):
        """cos, sin [N, r/2] of positions [N]"""
        f = self.tables[4 if ratio else 0] = self.tables[4 if ratio else 0].to(pos.device)
        a = pos.float().unsqueeze(-1) * f
        return a.cos(), a.sin()

    def linear(self, x, w):
        """A product with a matrix that is FP8 in the checkpoint."""
        if self.rounded:
            return F.linear(round_activation(x), round_matrix(w))
        return F.linear(x, w)

    def moe(self, m, x, ids):
        """x [N, D] → [N, D]; every expert computes, those not chosen weigh nothing."""
        c, E = self.c, self.c.n_routed_experts
        s = F.softplus(F.linear(x, m.gate)).sqrt()
        chosen = m.tid2eid[ids] if m.hashed else (s + m.bias).topk(c.num_experts_per_tok, -1)[1]
        if self.training and not m.hashed:
            self.load[m] = torch.zeros_like(s[0]).scatter_add_(0, chosen.flatten(), torch.ones_like(chosen, dtype=s.dtype).flatten())
        w = s.gather(-1, chosen)
        w = torch.zeros_like(s).scatter(-1, chosen, w / w.sum(-1, keepdim=True) * c.routed_scaling_factor)
        w1, w3, w2, xe = m.w1, m.w3, m.w2, x
        if self.rounded:
            w1, w3, w2, xe = round_expert(w1), round_expert(w3), round_expert(w2), round_activation(x)
        gate, up = F.linear(xe, w1.flatten(0, 1)).unflatten(-1, (E, -1)), F.linear(xe, w3.flatten(0, 1)).unflatten(-1, (E, -1))
        h = swiglu_weighted(gate, up, w, c.swiglu_limit).flatten(1)
        if self.rounded:
            h = round_activation(h)
        y = F.linear(h, w2.permute(1, 0, 2).flatten(1))
        return y + self.linear(swiglu(self.linear(x, m.s1), self.linear(x, m.s3), c.swiglu_limit), m.s2)

    def index(self, a, x, qr, cos, sin):
        """Index queries [Q, Hi, di] and their weights [Q, Hi]."""
        c = self.c
        q = self.linear(qr, a.index_wq_b).unflatten(-1, (c.index_n_heads, -1))
        q = turn(q, cos.unsqueeze(1), sin.unsqueeze(1)) @ hadamard(c.index_head_dim, x.device)
        return round_index(q), F.linear(x, a.index_weights) * (c.index_head_dim * c.index_n_heads) ** -0.5

    def attend(self, a, x, pos, B, hca_bias=None, guide=None, aux=None):
        """x [N, D] of B samples of T tokens, T a multiple of 128."""
        c, N = self.c, x.size(0)
        T, H, d, W = N // B, c.num_attention_heads, c.head_dim, c.sliding_window
        nope = d - c.qk_rope_head_dim
        cos, sin = self.angles(pos, a.ratio)
        qr = rms(self.linear(x, a.wq_a), a.q_norm, c.rms_norm_eps)
        q = rms_rope(self.linear(qr, a.wq_b).unflatten(-1, (H, d)), cos.unsqueeze(1), sin.unsqueeze(1), c.rms_norm_eps)
        kv = round_kv(norm_rope(self.linear(x, a.wkv), a.kv_norm, cos, sin, c.rms_norm_eps), nope)
        q = q * d ** -0.5
        # The window: blocks of W queries see their own and the previous block.
        n = T // W
        own = kv.view(B, n, W, d)
        rows = torch.cat((F.pad(own, (0, 0, 0, 0, 1, 0))[:, :-1], own), 2).view(B * n, 2 * W, d)
        i, j = torch.arange(W, device=x.device).view(W, 1), torch.arange(2 * W, device=x.device).view(1, 2 * W) - W
        hidden = torch.zeros(n, W, 1, 2 * W, device=x.device).masked_fill_(~((j <= i) & (j > i - W)).view(1, W, 1, 2 * W), -1e30)
        hidden[0, :, :, :W] = -1e30
        s = (q.view(B * n, W * H, d) @ rows.transpose(1, 2)).view(B, n, W, H, 2 * W) + hidden
        parts, entries = [s.view(B, T, H, 2 * W)], None
        if a.ratio:
            r, blocks = a.ratio, T // a.ratio
            at = pos.view(B, T)[:, ::r].reshape(-1)
            ecos, esin = (t.view(B, blocks, -1) for t in self.angles(at, r))
            raw = a.compressor(x.view(B, T, -1))
            entries = round_kv(turn(raw, ecos, esin), nope)
            if r == 4 and self.shown is not None:
                entries = torch.where(self.shown.view(B, 1, 1) == OTHERS_CSA, entries.roll(1, 0), entries)
            s = (q.view(B, T * H, d) @ entries.transpose(1, 2)).view(B, T, H, blocks)
            if self.shown is not None:
                s = s.masked_fill(self.shown.view(B, 1, 1, 1) == (NO_CSA if r == 4 else NO_HCA), -1e30)
            seen = torch.arange(blocks, device=x.device).view(1, -1) < (torch.arange(1, T + 1, device=x.device) // r).view(-1, 1)
            mask = torch.zeros(T, blocks, device=x.device).masked_fill_(~seen, -1e30)
            if r == 128 and hca_bias is not None:
                s = s + hca_bias.view(B, 1, 1, 1)
            if r == 4 and (guide is not None or self.select):
                keys = round_index(turn(a.index_compressor(x.view(B, T, -1)), ecos, esin) @ hadamard(c.index_head_dim, x.device))
                if self.shown is not None:
                    keys = torch.where(self.shown.view(B, 1, 1) == OTHERS_CSA, keys.roll(1, 0), keys)
            if r == 4 and self.select and blocks > c.index_topk:
                with torch.no_grad():
                    iq, iw = self.index(a, x, qr, cos, sin)
                    best = (iq.reshape(B, T * c.index_n_heads, -1) @ keys.transpose(1, 2)).view(B, T, -1, blocks).relu()
                    best = (best * iw.view(B, T, -1, 1)).sum(2) + mask
                    kept = torch.full_like(best, -1e30).scatter_(-1, best.topk(c.index_topk, -1)[1], 0.0)
                s = s + torch.minimum(kept, mask).unsqueeze(2)
            else:
                s = s + mask.view(1, T, 1, blocks)
            parts.append(s)
        p = torch.cat((*parts, a.attn_sink.view(1, 1, H, 1).expand(B, T, H, 1)), -1).softmax(-1)
        o = (p[..., :2 * W].reshape(B * n, W * H, 2 * W) @ rows).view(N, H, d)
        if a.ratio:
            o = o + (p[..., 2 * W:-1].reshape(B, T * H, -1) @ entries).view(N, H, d)
        if guide is not None:
            self.look(a, guide, aux, p, x, qr, q, cos, sin, raw if a.ratio else None, entries, keys if a.ratio == 4 else None, B)
        o = turn(o, cos.unsqueeze(1), -sin.unsqueeze(1)).flatten(1).unflatten(-1, (c.o_groups, -1))
        w = round_matrix(a.wo_a) if self.rounded else a.wo_a
        o = torch.einsum("ngd,grd->ngr", o, w.view(c.o_groups, c.o_lora_rank, -1)).flatten(1)
        return self.linear(o, a.wo_b)

    def look(self, a, guide, aux, p, x, qr, q, cos, sin, raw, entries, keys, B):
        """The guides, as losses in `aux`: before CSA a window head looks from what is told of a name to the name; in CSA
        the first two heads and the indexer look from a copy to the entry that has its source, among those of the whole batch;
        and a probe reads the source off that entry."""
        c = self.c
        T, W = x.size(0) // B, c.sliding_window
        if a.ratio == 128 and len(guide.gist):
            # The topic comes from HCA: its last two heads look at all entries, and at each as much.
            b, t, _ = guide.gist.T
            mass, entries = p[b, t, 2:, 2 * W:-1], ((t + 1) // 128).view(-1, 1, 1)
            seen = torch.arange(mass.size(-1), device=t.device) < entries
            even = torch.where(seen, (mass * entries).clamp_min(1e-6).log(), 0.0).sum(-1) / entries.squeeze(-1)
            aux["whole"] = aux.get("whole", 0) - even.mean()
        if a.ratio != 4:
            if len(guide.names) and a is not self.layers[-1].attn:
                b, t, name = guide.names.T
                mass = p[b, t, 0].gather(1, (name - t // W * W + W).view(-1, 1))
                aux["name"] = aux.get("name", 0) - mass.clamp_min(1e-6).log().mean()
            if a is self.layers[1].attn and len(guide.topics):
                b, block, topic = guide.topics.T
                read = self.theme(raw[b, block, :c.head_dim - c.qk_rope_head_dim])
                aux["theme"] = F.cross_entropy(read, topic)
                aux["theme_right"] = (read.detach().argmax(-1) == topic).float().mean()
            return
        blocks = T // 4
        if len(guide.facts):
            b, f = guide.facts.T
            fits = f // 4 + 1 < blocks
            b, f = b[fits], f[fits]
            read = self.probe(raw[b, f // 4 + 1, :c.head_dim - c.qk_rope_head_dim]).unflatten(-1, (5, -1)) @ self.embed.detach().T * c.hidden_size ** -0.5
            tokens = self.ids.view(B, T)[b.unsqueeze(1), (f.unsqueeze(1) + torch.arange(5, device=f.device)).clamp(max=T - 1)]
            aux["probe"] = F.cross_entropy(read.flatten(0, 1), tokens.flatten())
            aux["probe_right"] = (read.detach().argmax(-1) == tokens).float().mean()
        if not len(guide.copies):
            return
        b, t, entry, k = guide.copies.T
        # Only entries that are complete can be looked at.
        fits = entry < ((t + 1) // 4).clamp(max=blocks)
        b, t, entry, k, others = b[fits], t[fits], entry[fits], k[fits], guide.others[fits]
        heavy = torch.where(k == 0, 2.0, 0.7)
        heavy = heavy / heavy.mean()
        mass = p[b, t][..., 2 * W:][torch.arange(len(b), device=b.device), :, entry]
        aux["guide"] = -(heavy.unsqueeze(-1) * mass[:, :2].clamp_min(1e-6).log()).mean()
        aux["mass"] = mass.detach()[:, 0].mean()
        row = b * T + t
        mine = F.one_hot(b, B).bool()
        early = torch.arange(blocks, device=b.device).view(1, -1) < ((t + 1) // 4).view(-1, 1)
        valid = ((others | mine).unsqueeze(-1) & (~mine.unsqueeze(-1) | early.unsqueeze(1))).flatten(1)
        right = b * blocks + entry
        iq, iw = self.index(a, x[row], qr[row], cos[row], sin[row])
        score = sum((iq[:, h] @ keys.flatten(0, 1).T).relu() * iw[:, h:h + 1] for h in range(c.index_n_heads))
        score = score.masked_fill(~valid, -1e30)
        aux["index"] = (heavy * F.cross_entropy(score, right, reduction="none")).mean()
        with torch.no_grad():
            own = score.view(len(b), B, blocks)[torch.arange(len(b), device=b.device), b]
            aux["rank"] = (own > own.gather(1, entry.view(-1, 1))).sum(1).float().mean()
        far = 0
        for h in range(2):
            logits = (q.view(-1, c.num_attention_heads, c.head_dim)[row, h] @ entries.flatten(0, 1).T).masked_fill(~valid, -1e30)
            far = far + (heavy * F.cross_entropy(logits, right, reduction="none")).mean()
        aux["far"] = far / 2

    def block(self, l, h, ids, pos, B, hca_bias=None, guide=None, aux=None):
        """h [N, hc, D] → the same"""
        c = self.c
        for name, norm in (("attn", l.attn_norm), ("ffn", l.ffn_norm)):
            fn, base, scale = (getattr(l, f"hc_{name}_{s}") for s in ("fn", "base", "scale"))
            y, post, comb = hc_pre(h, F.linear(h.flatten(1), fn), scale, base, c.hc_eps, c.rms_norm_eps, c.hc_sinkhorn_iters)
            y = rms(y, norm, c.rms_norm_eps)
            y = self.attend(l.attn, y, pos, B, hca_bias, guide, aux) if name == "attn" else self.moe(l.ffn, y, ids)
            h = hc_post(y, h, post, comb)
        return h

    def forward(self, ids, pos=None, hca_bias=None, guide=None, mtp=False):
        """ids [B, T] → hidden [N, D] before the vocabulary, the MTP block's or none, losses of the guides"""
        B, T = ids.shape
        self.ids = ids = ids.flatten()
        plain = torch.arange(T, device=ids.device).repeat(B)
        pos = plain if pos is None else pos.flatten()
        aux = {}
        h = self.embed[ids].unsqueeze(1).expand(-1, self.c.hc_mult, -1).contiguous()
        for i, l in enumerate(self.layers):
            h = self.block(l, h, ids, pos if l.attn.ratio else plain, B, hca_bias, guide, aux)
        if guide is not None and len(guide.gist):
            b, t, topic = guide.gist.T
            read = self.gist(F.rms_norm(h[b * T + t].mean(1), (self.c.hidden_size,)))
            aux["gist"] = F.cross_entropy(read, topic)
            aux["gist_right"] = (read.detach().argmax(-1) == topic).float().mean()
        hidden, drafted = self.out(h), None
        if mtp:
            # Row p has h_p and token p + 1, and drafts p + 2; the last row of a sample has no next token and is not asked.
            c = self.c
            following = ids.view(B, T).roll(-1, 1).flatten()
            e = self.linear(rms(self.embed[following], self.enorm, c.rms_norm_eps), self.e_proj)
            x = e.unsqueeze(1) + self.linear(rms(h, self.hnorm, c.rms_norm_eps).flatten(0, 1), self.h_proj).view_as(h)
            drafted = self.mtp_out(self.block(self.mtp, x, following, plain, B))
        return hidden, drafted, aux


if __name__ == "__main__":
    m = Model()
    print(f"{sum(p.numel() for n, p in m.named_parameters() if n.split('.')[0] not in ('probe', 'theme', 'gist')) / 1e6:.2f} M parameters")
    ids = torch.randint(0, 2240, (2, 256))
    m.rounded = m.select = True
    h, d, _ = m(ids, mtp=True)
    print(h.shape, d.shape, h.std().item())

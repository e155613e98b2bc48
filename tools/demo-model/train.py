"""Trains the embedded model.

    python3 train.py --minutes 8 --out build/model            one GPU
    python3 train.py --steps 300 --batch 2048 --out …         what a CPU does in a while

Writes `OUT-N.safetensors` (parts of at most 15 MB, f32) and `OUT.jsonl`, a line of losses every 25 steps.
"""

import argparse
import json
import math
import multiprocessing as mp
import os
import queue
import random
import time

import numpy as np
import torch
import torch.nn.functional as F

import model as v4
import tasks
from checkpoint import fill, save
from model import Guide, Model

# Until which share of the run; tokens of a sample and how often; guides' weight; the indexer selects; rounding as in the checkpoint.
SCHEDULE = [
    (0.12, {256: 1.0}, 1.0, False, False),
    (0.40, {256: 0.35, 512: 0.65}, 1.0, False, False),
    (0.60, {512: 0.4, 1024: 0.6}, 0.7, False, False),
    (0.78, {512: 0.2, 1024: 0.6, 2048: 0.2}, 0.4, True, False),
    (1.01, {512: 0.2, 1024: 0.5, 2048: 0.3}, 0.3, True, True),
]
MOST_COPIES = 1280


def phase(progress):
    return next(p for p in SCHEDULE if progress < p[0])


def positions(r, T, first):
    """Positions with jumps up to a million in them, as a long text has before its question."""
    p = np.arange(T)
    if r.random() < 0.75:
        for _ in range(r.choice((1, 1, 2, 3))):
            at = 4 * r.randrange(1, max(2, first // 4 + 1))
            p[at:] += int(np.exp(r.uniform(np.log(64), np.log(1_000_000)))) // 128 * 128
    return np.minimum(p, 2_000_000)


def batch(r, B, T, natural, encoder):
    """One batch as arrays."""
    rows = []
    while len(rows) < B:
        made = encoder.encode(tasks.sample(r, T, natural), T)
        if made:
            rows.append(made)
    ids = np.array([row.ids for row in rows], np.int64)
    weights = np.array([row.weights for row in rows], np.float32)
    pos = np.array([positions(r, T, row.first_question) for row in rows])
    # A topic is to come from HCA, and without it not to be known.
    shown = [r.choice((v4.NO_CSA, v4.OTHERS_CSA, v4.NO_HCA)) if row.whole else v4.ALL for row in rows]
    copies, keys, names, facts, topics, gist = [], [], [], [], [], []
    for b, row in enumerate(rows):
        for query, entry, k, key, by in row.copies:
            copies.append((b, query, entry, k))
            keys.append(key)
            if k >= 0 and 0 <= query - by < 60:
                names.append((b, query, by))
        topics += [(b, block, topic) for block, topic in row.topics]
        gist += [(b, t, topic) for t, topic in row.gist if shown[b] != v4.NO_HCA]
        for start, end, name in row.facts:
            facts.append((b, start))
            names += [(b, t, name) for t in range(max(name, start - 1), end) if t - name < 60]
    chosen = r.sample(range(len(copies)), min(len(copies), MOST_COPIES))
    copies, keys = [copies[i] for i in chosen], [keys[i] for i in chosen]
    others = np.array([[key != "asked" and key not in row.keys for row in rows] for key in keys], bool).reshape(-1, B)
    table = lambda x, n: np.array(x, np.int64).reshape(-1, n)
    return ids, weights, pos, np.array(shown), table(copies, 4), others, table(names, 3), table(facts, 2), table(topics, 3), table(gist, 3)


def work(seed, share, progress, tokens, batches):
    """A worker: batches for where the run is."""
    r = random.Random(f"{seed} {share}")
    natural, encoder = tasks.Natural("train"), tasks.Encoder()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    while True:
        lengths = phase(progress.value)[1]
        T = r.choices(list(lengths), list(lengths.values()))[0]
        batches.put(batch(r, max(2, tokens // T), T, natural, encoder))


def next_batch(batches, workers):
    """The next batch, for as long as all who make them live."""
    while True:
        try:
            return batches.get(timeout=5)
        except queue.Empty:
            if ended := [worker.exitcode for worker in workers if not worker.is_alive()]:
                raise SystemExit(f"a worker that makes batches ended with {ended[0]}") from None


def losses(model, ids, weights, pos, guide, hca_bias, strength, mtp, topics, probes):
    """The whole loss of a batch, and numbers to show. `topics`: their tokens. `probes`: whether what reads entries has learned to."""
    B, T = ids.shape
    hidden, drafted, aux = model(ids, pos, hca_bias, guide, mtp)
    # Of filler and questions every other token is asked, for twice its weight.
    thin = (weights > 0) & (weights <= 0.3)
    weights = torch.where(thin & (torch.rand_like(weights) > 0.5), 0.0, torch.where(thin, 2 * weights, weights))
    parts, shown = [], {}
    for what, h, ahead in (("loss", hidden, 1), ("mtp", drafted, 2)):
        if h is None:
            continue
        w = F.pad(weights[:, ahead:], (0, ahead)).flatten()
        rows = w.nonzero().squeeze(1)
        w, y = w[rows], ids.flatten().roll(-ahead)[rows]
        logits = F.linear(h[rows], model.head)
        ce = F.cross_entropy(logits, y, reduction="none")
        blind = (model.shown[rows // T] == v4.NO_HCA) & (w == tasks.TOPIC)
        ce = torch.where(blind, -logits.log_softmax(-1)[:, topics].mean(-1), ce)
        loss = (ce * w).sum() / w.sum()
        parts.append(loss if ahead == 1 else 0.3 * loss)
        with torch.no_grad():
            right = (logits.argmax(-1) == y).float()
            shown[what] = loss.detach()
            mean = lambda x, m: (x * m).sum() / m.sum()
            shown[what + "_copied"] = mean(right, (w == tasks.COPIED).float())
            shown[what + "_said"] = mean(right, (w == tasks.SAID).float())
            if ahead == 1:
                shown["decided"] = mean(right, (w == tasks.DECIDED).float())
                shown["topic"] = mean(right, ((w == tasks.TOPIC) & ~blind).float())
                shown["blind"] = mean(right, blind.float())
                shown["talk"] = mean(right, (w == 1.0).float())
                shown["filler"] = mean(ce, (w < 0.5).float())
    total = sum(parts)
    for name, share in (("guide", 0.5), ("index", 0.3), ("far", 0.15), ("name", 0.3), ("probe", 0.3), ("theme", 0.3), ("gist", 0.5), ("whole", 0.2)):
        if name in aux and (probes or name not in ("probe", "theme")):
            total = total + share * (1.0 if name == "index" else strength) * aux[name]
    shown |= {k: v.detach() for k, v in aux.items()}
    return total, shown


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--out", default=str(tasks.HERE / "build/model"))
    p.add_argument("--init", help="go on from these parameters: parts, or a folder in the official layout")
    p.add_argument("--minutes", type=float, help="how long")
    p.add_argument("--steps", type=int, help="how many")
    p.add_argument("--start", type=float, default=0.0, help="begin at this share of the run")
    p.add_argument("--batch", type=int, default=32768, help="tokens of a step")
    p.add_argument("--rate", type=float, default=2e-3)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--bf16", action="store_true", help="matrices are multiplied in bfloat16, which some CPUs have instructions for")
    p.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    a = p.parse_args()
    if not (a.steps or a.minutes):
        p.error("--minutes or --steps says how long")
    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    torch._dynamo.config.cache_size_limit = 64
    v4.COMPILED = True
    device = "cuda" if torch.cuda.is_available() else "cpu"
    r = random.Random(a.seed)
    context = mp.get_context("fork")
    progress, batches = context.Value("d", a.start), context.Queue(24)
    workers = [context.Process(target=work, args=(a.seed, i, progress, a.batch, batches), daemon=True)
               for i in range(a.workers)]
    for worker in workers:
        worker.start()
    model = Model()
    probes = not a.init or fill(model, a.init)
    model.to(device).train()
    topics = torch.tensor([tasks.Encoder().ids(" " + topic)[0] for topic in sorted(tasks.TOPICS)], device=device)
    decay = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embed" not in n]
    other = [p for n, p in model.named_parameters() if not (p.ndim >= 2 and "embed" not in n)]
    opt = torch.optim.AdamW([dict(params=decay, weight_decay=0.05), dict(params=other, weight_decay=0.0)], lr=a.rate,
                            betas=(0.9, 0.98), eps=1e-9, fused=device == "cuda")
    log = open(f"{a.out}.jsonl", "a" if a.init else "w")
    began, saved, step, tokens, waited, sums, counts = time.time(), time.time(), 0, 0, 0.0, {}, {}
    first = None
    while True:
        if a.steps:
            at = a.start + (1 - a.start) * step / a.steps
        else:
            at = a.start + (1 - a.start) * (0 if first is None else (time.time() - first) / 60 / a.minutes)
        if at >= 1.0:
            break
        progress.value = at
        _, _, strength, model.select, model.rounded = phase(at)
        done = (at - a.start) / (1 - a.start)
        rate = a.rate * min(1, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * done)) * 0.98 + 0.02)
        for g in opt.param_groups:
            g["lr"] = rate
        t = time.time()
        arrays = next_batch(batches, workers)
        waited += time.time() - t
        ids, weights, pos, model.shown, *told = (torch.from_numpy(x).to(device, non_blocking=True) for x in arrays)
        B, T = ids.shape
        bias = torch.tensor([0.0 if r.random() < 0.4 else r.uniform(0, math.log(1000)) for _ in range(B)], device=device)
        with torch.autocast(device, torch.bfloat16, enabled=a.bf16):
            total, shown = losses(model, ids, weights, pos, Guide(*told), bias, strength, at >= 0.12, topics, probes)
        opt.zero_grad(set_to_none=True)
        total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if finite := math.isfinite(norm.item()):
            opt.step()
        with torch.no_grad():
            for m, load in model.load.items():
                m.bias += 0.002 * torch.sign(load.mean() - load) * (at < 0.9)
        model.load.clear()
        if first is None and step == 2:
            first = time.time()
        shown |= dict(norm=norm, skipped=float(not finite))
        for k, v in shown.items():
            # What a batch has nothing of is no nought.
            if k in ("loss", "mtp", "norm") or not math.isnan(v):
                sums[k] = sums.get(k, 0) + v
                counts[k] = counts.get(k, 0) + 1
        step, tokens = step + 1, tokens + B * T
        if step % 25 == 0:
            line = {k: round(float(v) / counts[k], 4) for k, v in sums.items()}
            seconds = time.time() - began
            line = dict(step=step, at=round(at, 4), seconds=round(seconds, 1), waited=round(waited, 1), tokens=tokens,
                        rate=round(rate, 6), T=T, **line)
            sums, counts = {}, {}
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
        if time.time() - saved > 60:
            save(model, a.out, probes)
            saved = time.time()
    save(model, a.out, probes)
    print(f"{step} steps, {tokens:,} tokens, {time.time() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""`fathom plan` against runs, on an otherwise idle machine: docs/planning.md has what came out. Standard library only.

    python3 benches/plan.py                                  the embedded model
    python3 benches/plan.py demo ~/mid ~/flash-slice         and checkpoints in folders
    python3 benches/plan.py ~/mid@2GiB,450MiB --json mid.json
    python3 benches/plan.py --quick                          a minute: whether it works, not how well

Each model is run at each context and in each memory budget. Peak memory is what the system says of a process that reads a prompt of that
length; a snapshot's bytes are those of its files; speeds are `fathom bench`'s, predicted from what the machine gave just before each
run, and a drive during it, as bench tells, so that a neighbour does not count."""
import argparse
import array
import json
import os
import random
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

MIB = 1 << 20
# Of what a drive gives to large reads, that reading experts is taken to get: `DRIVE` of crates/fathom/src/plan/efficiency.rs.
EXPERTS = 0.8
# What is asked of the predictions, in per cent.
ASKED = {"peak memory": 5, "snapshot": 2, "decode": 20, "prefill": 25}


def run(command, fails=False):
    """Standard output of a command, or what it complains of where it is to fail."""
    threads = command[command.index("--threads") + 1] if "--threads" in command else "1"
    # The tokenizer's threads are no others than the model's.
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "RAYON_NUM_THREADS": threads})
    if (done.returncode != 0) != fails:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stderr if fails else done.stdout


class Model:
    """A model under test, in a folder without a tokenizer: memory is then that of tokens alone, with no tables for text."""

    def __init__(self, given, place):
        self.given, _, self.budgets = given.partition("@")
        self.name = self.given if self.given == "demo" else Path(self.given).name
        self.at = self.given
        if self.given != "demo":
            files = [f for f in Path(self.given).resolve().iterdir() if f.name == "config.json" or ".safetensors" in f.name]
            folder = place / "model"
            folder.mkdir()
            for file in files:
                (folder / file.name).symlink_to(file)
            self.at = str(folder)


class Bench:
    """The flags, the machine, and what was compared so far."""

    def __init__(self, args):
        self.args, self.rows = args, []
        self.fixed = ["--threads", str(args.threads)] + (["--isa", args.isa] if args.isa else [])

    def machine(self, model):
        """This machine as plan measures it, its drive that of the model."""
        drive = [] if model.given == "demo" else ["--drive", model.given]
        machine = json.loads(run([self.args.fathom, "plan", "--describe", "--json", *self.fixed, *drive]))
        if self.args.drive:
            machine["drive"] = {"read-gbps": self.args.drive}
        return machine

    def plan(self, model, machine, context, budget, more=(), fails=False):
        """What plan says of one context; its refusal where it is to fail."""
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump({**machine, "memory-gib": 1024}, file)
            file.flush()
            command = [self.args.fathom, "plan", model.at, "--machine", file.name, "--context", str(context), "--json",
                       "--skew", str(self.args.skew), "--locality", "0", "--memory", budget, *more]
            out = run(command, fails)
        return out if fails else json.loads(out)["points"][0]

    def budgets(self, model, machine):
        """Those that were named, or one in which all weights fit and one half way down to the least."""
        if model.budgets:
            return model.budgets.split(",")
        longest = max(self.args.contexts)
        most = self.plan(model, machine, longest, "1024GiB")["memory"]["total"]
        least = int(re.search(r"--memory (\d+)MiB", self.plan(model, machine, longest, "1MiB", fails=True))[1]) * MIB
        return [f"{most // MIB + 64}MiB", f"{(least + most) // 2 // MIB + 1}MiB"]

    def row(self, model, budget, context, what, predicted, measured, more=""):
        """Compares, prints a line, and keeps it."""
        off = 100 * (predicted / measured - 1)
        kept = {"model": model.name, "budget": budget, "context": context, "what": what, "predicted": predicted,
                "measured": measured, "off_percent": off, "asked_percent": ASKED[what], "held_up_by": more}
        self.rows.append(kept)
        shown = [f"{n / MIB:,.1f} MiB" if what in ("peak memory", "snapshot") else f"{n:,.1f}/s" for n in (predicted, measured)]
        print(f"| {model.name} | {budget} | {context:,} | {what} | {shown[0]} | {shown[1]} | {off:+.1f} % | {ASKED[what]} % "
              f"| {'yes' if abs(off) <= ASKED[what] else 'no'} | {more} |", flush=True)

    def memory(self, model, machine, context, budget, place):
        """Peak memory of reading so long a prompt."""
        expected = self.plan(model, machine, context, budget)["memory"]["expected"]
        if model.given == "demo":
            command = [self.args.fathom, "demo", "--context", str(context), "--seed", "3"]
        else:
            command = self.score(model, context, place)
        out = run([*command, "--json", "--memory", budget, *self.fixed])
        self.row(model, budget, context, "peak memory", expected, json.loads(out)["peak_rss_bytes"])

    def snapshot(self, model, machine, context, place):
        """Bytes of a saved session of so many tokens."""
        store = place / f"store-{context}"
        run([*self.score(model, context, place), "--store", str(store), "--save-at", str(context), *self.fixed])
        files = [file for part in ("objects", "manifests") for file in store.rglob(f"{part}/**/*") if file.is_file()]
        found = sum(file.stat().st_size for file in files)
        shutil.rmtree(store)
        self.row(model, "any", context, "snapshot", self.plan(model, machine, context, "1024GiB")["snapshot"]["bytes"], found)

    def score(self, model, context, place):
        """A command that reads so many tokens."""
        file = place / "tokens.safetensors"
        # As frequent as 1 ÷ their number, as a text's tokens nearly are.
        vocabulary = json.loads((Path(model.given) / "config.json").read_text())["vocab_size"] if model.given != "demo" else 2240
        rank = random.Random(context)
        write_tokens(file, [int(vocabulary ** rank.random()) - 1 for _ in range(context)])
        return [self.args.fathom, "score", model.at, "--tokens", str(file), "--output", str(place / "logits"), "--no-counts"]

    def speeds(self, model, context, budget):
        """A prompt's last chunk, and an answer behind all that is before it. Of several tries that counts whose
        predicted ÷ measured is the median."""
        tries = sorted((t for _ in range(self.args.tries) for t in self.speed(model, context, budget)), key=lambda t: t[1] / t[2])
        for test in ("prefill", "decode"):
            of = [t for t in tries if t[0] == test]
            self.row(model, budget, context, *of[len(of) // 2])

    def speed(self, model, context, budget):
        """One try: what, predicted, measured and held up by what, of both."""
        a = self.args
        depth = context - a.chunk
        chunk = ["--prefill-chunk", str(a.chunk)]
        machine = self.machine(model)
        out = run([a.fathom, "bench", model.at, "--prefill", str(a.chunk), "--decode", str(a.decode), "--depth", str(depth),
                   "--runs", str(a.runs), "--memory", budget, "--no-counts", "--json", *chunk, *self.fixed])
        for result in map(json.loads, out.splitlines()):
            rates = result["roofline"]["machine"]
            then = {**machine, "read-gbps": rates["read_bytes_per_second"] / 1e9,
                    "f32-gflops": rates["f32_flops_per_second"] / 1e9, "int8-tops": rates["int8_ops_per_second"] / 1e12}
            if result.get("experts") and not a.drive:
                # A drive that others share gives now more, now less: what it gave the run, of which experts get their part.
                gave = result["experts"]["bandwidth_bytes_per_second"] / EXPERTS / machine["drive"].get("count", 1)
                then["drive"] = {**machine["drive"], "read-gbps": gave / 1e9}
            at = context if result["test"] == "prefill" else depth + result["tokens"] // 2
            point = self.plan(model, then, at, budget, chunk)
            want = point[result["test"]]
            yield result["test"], want["tokens_per_second"], result["tokens_per_second"], want["bottleneck"].replace("_", " ")

    def all(self, model, place):
        machine = self.machine(model)
        for context in self.args.contexts:
            self.snapshot(model, machine, context, place)
        for budget in self.budgets(model, machine):
            for context in self.args.contexts:
                self.memory(model, machine, context, budget, place)
                self.speeds(model, context, budget)


def write_tokens(path, ids):
    """A safetensors file with `prompt` and `tokens`, the last of them alone, as `fathom score` reads it."""
    data = array.array("i", ids).tobytes()
    parts = {"prompt": (0, len(ids) - 1), "tokens": (len(ids) - 1, len(ids))}
    header = {name: {"dtype": "I32", "shape": [end - start], "data_offsets": [4 * start, 4 * end]}
              for name, (start, end) in parts.items()}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("models", nargs="*", default=["demo"], metavar="MODEL[@BUDGET,BUDGET]",
                   help="demo, or a checkpoint's folder, with memory budgets if you like [default: demo]")
    p.add_argument("--fathom", default="target/release/fathom")
    p.add_argument("--contexts", type=lambda text: sorted({int(n) for n in text.split(",")}), help="[default: 2048,8192,32768]")
    p.add_argument("--threads", type=int, default=os.cpu_count())
    p.add_argument("--isa", help="[default: the best this CPU has]")
    p.add_argument("--drive", type=float, help="GB/s that the drive gives several large reads at once [default: measured]")
    p.add_argument("--skew", type=float, default=0.0, help="of the experts' popularity; random weights have next to none")
    p.add_argument("--chunk", type=int, help="tokens of a prompt read at once, and timed [default: 512]")
    p.add_argument("--decode", type=int, help="tokens of an answer timed [default: 32]")
    p.add_argument("--runs", type=int, help="of each test; medians count [default: 3]")
    p.add_argument("--tries", type=int, default=1, help="of each speed, each with the machine's rates just before it; the middle one "
                   "counts [default: %(default)s]")
    p.add_argument("--json", metavar="FILE", help="where all that was compared goes, as a list of objects")
    p.add_argument("--quick", action="store_true", help="short contexts, one run: whether it works")
    a = p.parse_args()
    for name, usual, quick in [("contexts", [2048, 8192, 32768], [1024, 2048, 4096]), ("chunk", 512, 256), ("decode", 32, 8), ("runs", 3, 1)]:
        if getattr(a, name) is None:
            setattr(a, name, quick if a.quick else usual)
    if a.tries < 1:
        sys.exit("--tries must be at least 1")
    if min(a.contexts) <= a.chunk:
        sys.exit(f"contexts must be longer than the {a.chunk} tokens of --chunk")
    bench = Bench(a)
    print("| model | budget | context | what | predicted | measured | off by | asked | kept | held up by |")
    print("|---|---|---|---|---|---|---|---|---|---|", flush=True)
    try:
        for given in a.models:
            with tempfile.TemporaryDirectory() as place:
                bench.all(Model(given, Path(place)), Path(place))
    finally:
        # What there is of it, if it ends early.
        if a.json:
            Path(a.json).write_text(json.dumps(bench.rows, indent=1) + "\n")


if __name__ == "__main__":
    main()

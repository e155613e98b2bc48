#!/usr/bin/env python3
"""fathom beside llama.cpp on the same weights, in turn, as compare.md says. Standard library only."""
import argparse
import json
import statistics
import subprocess
import sys


def run(command):
    """Standard output of a command; its complaints, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def fathom(a, prefill, decode, depths, runs):
    """{(test, tokens, depth): [result]} of `fathom bench --json`."""
    command = [a.fathom, "bench", a.model, "--prefill", prefill, "--decode", decode, "--depth", depths,
               "--threads", str(a.threads), "--runs", str(runs), "--json"]
    results = [json.loads(line) for line in run(command).splitlines()]
    return {(r["test"], r["tokens"], r["depth"]): r for r in results}


def llama(a, prefill, decode, depth, runs):
    """{(test, tokens, depth): [tokens per second]} of `llama-bench`."""
    command = [a.llama_bench, "-m", a.gguf, "-t", str(a.threads), "-ub", "512", "-p", prefill, "-n", decode,
               "-d", str(depth), "-r", str(runs), "-o", "json"]
    out = {}
    for r in json.loads(run(command)):
        test, tokens = ("prefill", r["n_prompt"]) if r["n_prompt"] else ("decode", r["n_gen"])
        out[(test, tokens, r["n_depth"])] = r["samples_ts"]
    return out


def growth(deep, short):
    """Time that depth adds to a token ÷ the time its added operations take at the machine's peaks."""
    if not deep["depth"] or not short:
        return ""
    short = short[-1]  # That of the same run.
    deep_needs, needs, machine = deep["roofline"], short["roofline"], deep["roofline"]["machine"]
    int8 = deep_needs["int8_per_token"] - needs["int8_per_token"]
    f32 = deep_needs["flops_per_token"] - needs["flops_per_token"] - int8
    least = int8 / machine["int8_ops_per_second"] + f32 / machine["f32_flops_per_second"]
    return f"{(1 / deep['tokens_per_second'] - 1 / short['tokens_per_second']) / least:.2f}"


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("--fathom", default="target/release/fathom")
    p.add_argument("--model", required=True, help="the checkpoint's folder")
    p.add_argument("--llama-bench", help="llama.cpp's llama-bench; without it fathom alone is measured")
    p.add_argument("--gguf", help="the same checkpoint, converted")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--runs", type=int, default=5)
    p.add_argument("--depths", default="4096,32768", help="depths after 0, with commas between; empty for none")
    p.add_argument("--llama-depth", type=int, default=32768, help="the deepest that llama.cpp is asked for")
    a = p.parse_args()

    ours, theirs = {}, {}

    def keep(results, rates):
        for key, r in results.items():
            ours.setdefault(key, []).append(r)
        for key, samples in rates.items():
            theirs.setdefault(key, []).extend(samples)

    # Short tests in turn, round by round, so that a neighbour on the machine disturbs both alike.
    for _ in range(a.runs):
        keep(fathom(a, "512,2048", "32", "0", 1), llama(a, "512,2048", "32", 0, 1) if a.llama_bench else {})
    # A depth is read once and measured from there: both programs do that.
    if a.depths:
        keep(fathom(a, "256", "32", "0," + a.depths, a.runs), {})
        for depth in a.depths.split(",") if a.llama_bench else []:
            if int(depth) <= a.llama_depth:
                keep({}, llama(a, "256", "32", int(depth), a.runs))

    print("| test | llama.cpp | fathom | ratio | of bandwidth | of arithmetic | growth |")
    print("|---|---|---|---|---|---|---|")
    for (test, tokens, depth), results in ours.items():
        rate = statistics.median(r["tokens_per_second"] for r in results)
        share = {k: statistics.median(r["roofline"][k] for r in results)
                 for k in ("fraction_of_bandwidth", "fraction_of_compute")}
        other = theirs.get((test, tokens, depth))
        beside = f"{statistics.median(other):.1f} | {rate:.1f} | {rate / statistics.median(other):.2f}" if other \
            else f"– | {rate:.1f} | –"
        print(f"| {test} {tokens} at {depth} | {beside} | {share['fraction_of_bandwidth']:.0%} | "
              f"{share['fraction_of_compute']:.0%} | {growth(results[0], ours.get((test, tokens, 0)))} |")
    machines = [r["roofline"]["machine"] for results in ours.values() for r in results]
    for what, unit in (("read_bytes_per_second", "GB/s"), ("f32_flops_per_second", "Gflop/s"),
                       ("int8_ops_per_second", "Gop/s")):
        values = sorted(m[what] / 1e9 for m in machines)
        print(f"\n{what}: median {statistics.median(values):.0f} {unit}, {values[0]:.0f} to {values[-1]:.0f}")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""`fathom plan` against `fathom bench`, on an otherwise idle machine: docs/planning.md has what came out. Standard library only.

Each run is predicted from what the machine gave just before it, as bench tells it, so that a neighbour does not count."""
import argparse
import json
import subprocess
import sys
import tempfile


def run(command):
    """Standard output of a command; its complaints, if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr}")
    return done.stdout


def predicted(a, result, drive):
    """What plan says of one result of bench."""
    rates = result["roofline"]["machine"]
    machine = {
        "name": "measured by bench", "isa": a.isa, "threads": a.threads, "memory-gib": 1024,
        "read-gbps": rates["read_bytes_per_second"] / 1e9, "f32-gflops": rates["f32_flops_per_second"] / 1e9,
        "int8-tops": rates["int8_ops_per_second"] / 1e12,
        "drive": {"read-gbps": drive},
    }
    context = result["depth"] + (a.chunk if result["test"] == "prefill" else result["tokens"] // 2)
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(machine, file)
        file.flush()
        command = [a.fathom, "plan", a.model, "--machine", file.name, "--context", str(context), "--json",
                   "--prefill-chunk", str(a.chunk), "--skew", str(a.skew), "--locality", "0"]
        command += ["--memory", a.memory] if a.memory else []
        point = json.loads(run(command))["points"][0]
    return point[result["test"]], point["memory"]


def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("model", nargs="?", default="demo")
    p.add_argument("--fathom", default="target/release/fathom")
    p.add_argument("--depths", default="2048,8192,32768")
    p.add_argument("--memory", help="a budget, for streamed experts")
    p.add_argument("--drive", type=float, default=2.0, help="GB/s that the drive gives several large reads at once")
    p.add_argument("--skew", type=float, default=0.0, help="of the experts' popularity; random weights have next to none")
    p.add_argument("--isa", default="avx512-bf16")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--chunk", type=int, default=512)
    p.add_argument("--decode", type=int, default=32)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--results", help="a file with what bench said before, instead of running it")
    a = p.parse_args()
    command = [a.fathom, "bench", a.model, "--prefill", str(a.chunk), "--decode", str(a.decode), "--depth", a.depths,
               "--threads", str(a.threads), "--isa", a.isa, "--runs", str(a.runs), "--prefill-chunk", str(a.chunk), "--json"]
    command += ["--memory", a.memory, "--no-counts"] if a.memory else []
    print("| test | depth | predicted | measured | off by | held up by | memory expected | peak |")
    print("|---|---|---|---|---|---|---|---|")
    lines = open(a.results).read() if a.results else run(command)
    for line in lines.splitlines():
        result = json.loads(line)
        rate, memory = predicted(a, result, a.drive)
        found, want = result["tokens_per_second"], rate["tokens_per_second"]
        print(f"| {result['test']} {result['tokens']} | {result['depth']:,} | {want:,.1f} | {found:,.1f} "
              f"| {100 * (want / found - 1):+.0f} % | {rate['bottleneck'].replace('_', ' ')} "
              f"| {memory['expected'] / 2**20:,.0f} MiB | {result['peak_rss_bytes'] / 2**20:,.0f} MiB |", flush=True)


if __name__ == "__main__":
    main()

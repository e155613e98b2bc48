#!/usr/bin/env python3
"""Many clients at once at a running `fathom serve`, and whether it bears them. Needs Python alone.

    fathom serve MODEL &
    python tests/clients/load.py [--base-url http://127.0.0.1:8080] [--clients 64] [--seconds 600] [--longest 4000] [--long 0]

Each client asks with prompts of mixed lengths, streamed, and leaves in the middle of one of four. --long N has one prompt of N
words read beside them all the time. Fails for a status other than 200 and 429, for a stream that ends early, and if memory grows
by more than two percent after the first quarter. Prints the times between tokens and to the first, from the server's metrics.
"""

import argparse
import http.client
import json
import random
import threading
import time
import urllib.parse

WORDS = "the code of a name is not what line says nothing new about it and all that was known before".split()


class Load:
    def __init__(self, args):
        self.args, self.host = args, urllib.parse.urlsplit(args.base_url).netloc
        self.end = time.time() + args.seconds
        self.lock, self.counts, self.problems = threading.Lock(), {}, []
        self.model = json.loads(self.get("/v1/models"))["data"][0]["id"]

    def get(self, path):
        connection = http.client.HTTPConnection(self.host, timeout=60)
        connection.request("GET", path)
        return connection.getresponse().read().decode()

    def count(self, what, n=1):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + n

    def problem(self, text):
        with self.lock:
            self.problems.append(text)

    def ask(self, words, tokens, leaves):
        text = " ".join(random.choice(WORDS) for _ in range(words))
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "stream": True,
                "max_tokens": tokens, "temperature": 1, "logit_bias": {"1": -100}}
        connection = http.client.HTTPConnection(self.host, timeout=600)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body))
            reply = connection.getresponse()
            if reply.status == 429:
                reply.read()
                self.count("turned away")
                time.sleep(1)
                return
            if reply.status != 200:
                self.problem(f"status {reply.status}: {reply.read()[:200]}")
                return
            after, seen, ended = (random.randint(1, 40) if leaves else None), 0, False
            for line in reply:
                if after is not None and seen >= after:
                    self.count("left")
                    return
                if line.startswith(b"data: [DONE]"):
                    ended = True
                elif line.startswith(b"data: "):
                    if b'"error"' in line:
                        self.problem(line.decode())
                    self.count("chunks")
                seen += bool(line.strip())
            self.count("answered")
            if not ended:
                self.problem("a stream ended early")
        except Exception as error:
            self.problem(f"{type(error).__name__}: {error}")
        finally:
            connection.close()

    def client(self):
        while time.time() < self.end:
            words = int(self.args.longest ** random.random()) + 1
            self.ask(words, random.randint(1, 100), random.random() < 0.25)

    def long(self):
        while time.time() < self.end:
            self.ask(self.args.long, 1, False)

    def metrics(self):
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if line and line[0] != "#")
        return {name: float(value) for name, value in lines}


def quantile(metrics, name, q):
    """The bound of the bucket that the quantile lies in."""
    buckets = [(float(key.split('le="')[1][:-2].replace("+Inf", "inf")), n) for key, n in metrics.items()
               if key.startswith(name + "_bucket")]
    total = max((n for _, n in buckets), default=0)
    return next((bound for bound, n in sorted(buckets) if n >= q * total), None)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--longest", type=int, default=4000)
    parser.add_argument("--long", type=int, default=0)
    args = parser.parse_args()
    load = Load(args)
    threads = [threading.Thread(target=load.client) for _ in range(args.clients)]
    threads += [threading.Thread(target=load.long)] * bool(args.long)
    [thread.start() for thread in threads]
    memory = []
    while any(thread.is_alive() for thread in threads):
        time.sleep(args.seconds / 40)
        memory.append(load.metrics().get("fathom_rss_bytes", 0))
    settled = memory[len(memory) // 4:]
    metrics = load.metrics()
    print(json.dumps(load.counts))
    for name in ("fathom_time_to_first_token_seconds", "fathom_inter_token_seconds", "fathom_queue_seconds"):
        print(name, " ".join(f"p{q:g} ≤ {quantile(metrics, name, q / 100)} s" for q in (50, 90, 99)))
    print("generated", metrics["fathom_generated_tokens_total"], "tokens, read",
          metrics["fathom_prompt_tokens_total"] - metrics["fathom_reused_tokens_total"])
    print(f"memory {memory[0] / 2**20:.0f} MiB at first, {settled[0] / 2**20:.0f} to {max(settled) / 2**20:.0f} MiB later,",
          f"planned {metrics['fathom_rss_planned_bytes'] / 2**20:.0f} MiB")
    for problem in load.problems[:10]:
        print("problem:", problem)
    assert not load.problems, f"{len(load.problems)} problems"
    assert args.seconds < 120 or max(settled) <= 1.02 * settled[0], "memory grows"


if __name__ == "__main__":
    main()

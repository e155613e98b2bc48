#!/usr/bin/env python3
"""Many clients at once at a running `fathom serve`, and whether it bears them. Needs Python alone.

    fathom serve MODEL &
    python tests/clients/load.py [--base-url http://127.0.0.1:8080] [--clients 64] [--seconds 600] [--longest 4000] [--long 0]

Each client asks with prompts of mixed lengths, streamed, and leaves in the middle of one of four. --long N has one prompt of N
words read beside them all the time. Fails for a status other than 200 and 429, for a stream that ends early, and, where it runs for
three minutes or more, if memory in the last minute is more than two percent above that in the second (medians; mapped weights,
which come in as they are first used, left out). Prints the times
between tokens and to the first, from the server's metrics and as the clients here saw them: those have this script's own delays.
"""

import argparse
import http.client
import json
import random
import statistics
import threading
import time
import urllib.parse

WORDS = "the code of a name is not what line says nothing new about it and all that was known before".split()


class Load:
    def __init__(self, args):
        self.args, self.host = args, urllib.parse.urlsplit(args.base_url).netloc
        self.end = time.time() + args.seconds
        self.lock, self.counts, self.problems = threading.Lock(), {}, []
        self.gaps, self.firsts = [], []
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

    def saw(self, times):
        """Notes when an answer was asked for and when its pieces came."""
        with self.lock:
            self.firsts.extend(second - first for first, second in zip(times[:1], times[1:]))
            self.gaps.extend(after - before for before, after in zip(times[1:], times[2:]))

    def ask(self, words, tokens, leaves):
        text = " ".join(random.choice(WORDS) for _ in range(words))
        body = {"model": self.model, "messages": [{"role": "user", "content": text}], "stream": True,
                "max_tokens": tokens, "temperature": 1, "logit_bias": {"1": -100}}
        connection = http.client.HTTPConnection(self.host, timeout=600)
        times = [time.monotonic()]
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
                    # The first has the role alone, the last why it ends.
                    if b'"content":"' in line and b'"content":""' not in line:
                        times.append(time.monotonic())
                seen += bool(line.strip())
            self.count("answered")
            if not ended:
                self.problem("a stream ended early")
        except Exception as error:
            self.problem(f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            self.saw(times)

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


def seen(values, q):
    """A quantile of what was seen, in milliseconds."""
    return round(1000 * sorted(values)[min(len(values) - 1, int(q * len(values)))], 1)


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
    memory, start = [], time.time()
    while any(thread.is_alive() for thread in threads):
        time.sleep(min(args.seconds / 40, 2))
        now = load.metrics()
        rss = now.get("fathom_rss_bytes", 0)
        memory.append((time.time() - start, rss, now.get("fathom_rss_anonymous_bytes", rss)))
    # Those that have not ended by then empty the queue, with fewer at once.
    during = [one for one in memory if one[0] <= args.seconds] or memory
    early = [own for at, _, own in during if 60 <= at < 120]
    late = [own for at, _, own in during if at >= max(120, args.seconds - 60)]
    metrics = load.metrics()
    print(json.dumps(load.counts))
    for name in ("fathom_time_to_first_token_seconds", "fathom_inter_token_seconds", "fathom_queue_seconds"):
        print(name, " ".join(f"p{q:g} ≤ {quantile(metrics, name, q / 100)} s" for q in (50, 90, 99)))
    for what, values in (("first piece", load.firsts), ("between pieces", load.gaps)):
        if values:
            shown = " ".join(f"p{q:g} {seen(values, q / 100)} ms" for q in (50, 90, 99))
            print(f"{what}, as {len(values)} came here: {shown}, longest {seen(values, 1)} ms")
    print("generated", metrics["fathom_generated_tokens_total"], "tokens, read",
          metrics["fathom_prompt_tokens_total"] - metrics["fathom_reused_tokens_total"])
    print(f"memory {memory[0][1] / 2**20:.0f} MiB at first, {max(rss for _, rss, _ in memory) / 2**20:.0f} MiB at most,",
          f"planned {metrics['fathom_rss_planned_bytes'] / 2**20:.0f} MiB")
    growth = statistics.median(late) / statistics.median(early) - 1 if args.seconds >= 180 and early and late else 0
    if args.seconds >= 180:
        print(f"memory without mapped files in the last minute against the second: {100 * growth:+.2f} %")
    for problem in load.problems[:10]:
        print("problem:", problem)
    assert not load.problems, f"{len(load.problems)} problems"
    assert args.seconds < 180 or early and late, "memory could not be seen"
    assert growth <= 0.02, "memory grows"


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Attacks on a running `fathom serve`: limits answer, the server stays up, and memory stays in its budget. Needs Python alone.

    fathom serve MODEL &
    python tests/clients/attacks.py [--base-url http://127.0.0.1:8080] [--key KEY] [--seconds 20]

With --key also the time is measured that wrong keys take; the server was then started with --keys and has that key in the file.
"""

import argparse
import http.client
import json
import random
import socket
import statistics
import threading
import time
import urllib.parse


class Server:
    def __init__(self, args):
        self.host = urllib.parse.urlsplit(args.base_url)
        self.key, self.seconds = args.key, args.seconds

    def headers(self, key=None):
        key = key or self.key
        return {"Authorization": f"Bearer {key}"} if key else {}

    def ask(self, method, path, body=None, headers=None, timeout=180):
        connection = http.client.HTTPConnection(self.host.hostname, self.host.port, timeout=timeout)
        try:
            connection.request(method, path, body, {**self.headers(), **(headers or {})})
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def connect(self, timeout=60):
        return socket.create_connection((self.host.hostname, self.host.port), timeout=timeout)

    def raw(self, data, timeout=60):
        """Sends bytes as they are, and returns the first line of what comes back."""
        with self.connect(timeout) as connection:
            try:
                connection.sendall(data)
                return connection.recv(4096).split(b"\r\n")[0].decode(errors="replace")
            except (ConnectionError, BrokenPipeError):
                return ""

    def memory(self):
        lines = self.ask("GET", "/metrics")[1].decode().splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if line and line[0] != "#")
        return float(values["fathom_rss_peak_bytes"]), float(values["fathom_rss_planned_bytes"])

    def well(self, what):
        start = time.time()
        status, _ = self.ask("GET", "/health", timeout=30)
        took = time.time() - start
        assert status == 200 and took < 5, f"after {what}: {status} in {took:.1f} s"

    def chat(self, body):
        return self.ask("POST", "/v1/chat/completions", body)[0]


def slow(server):
    """Many connections that send a byte now and then, in the head and in the body."""
    held = []
    head = "\r\n".join(f"{name}: {value}" for name, value in server.headers().items())
    for i in range(200):
        connection = server.connect()
        start = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
        if i % 2:
            start += head.encode() + (b"\r\n" if head else b"") + b"content-length: 1000000\r\n\r\n{"
        connection.sendall(start)
        held.append(connection)
    end = time.time() + server.seconds
    while time.time() < end:
        for connection in held:
            try:
                connection.sendall(b"x")
            except OSError:
                pass
        server.well("slow clients")
        time.sleep(1)
    [connection.close() for connection in held]
    return f"{len(held)} connections for {server.seconds} s, others are served"


def large(server):
    """Bodies of 100 MB, some of them at once, and chunked ones without an end."""
    body = b'{"model": "x", "messages": [{"role": "user", "content": "' + b"x" * 100_000_000 + b'"}]}'
    statuses = []
    threads = [threading.Thread(target=lambda: statuses.append(server.chat(body))) for _ in range(8)]
    [thread.start() for thread in threads]
    while any(thread.is_alive() for thread in threads):
        server.well("large bodies")
        time.sleep(0.2)
    assert set(statuses) <= {413, 429} and len(statuses) == 8, statuses
    return f"answered {sorted(statuses)}"


def many(server):
    """A million tiny messages, and other bodies that take much more memory than bytes."""
    message = '{"role":"user","content":"x"}'
    bodies = {
        "a million messages": '{"model":"x","messages":[' + ",".join([message] * 1_000_000) + "]}",
        "as many as are read": '{"model":"x","messages":[' + ",".join([message] * 60_000) + "]}",
        "a million lists": '{"model":"x","messages":[' + ",".join(["[]"] * 1_000_000) + "]}",
        "as many numbers as are read": '{"model":"x","prompt":[' + ",".join(["7"] * 1_500_000) + "]}",
    }
    answers = {}
    for name, body in bodies.items():
        statuses = []
        threads = [threading.Thread(target=lambda: statuses.append(server.chat(body))) for _ in range(4)]
        [thread.start() for thread in threads]
        while any(thread.is_alive() for thread in threads):
            server.well(name)
            time.sleep(0.1)
        assert len(statuses) == 4 and set(statuses) <= {400, 404, 413, 422, 429}, (name, statuses)
        answers[name] = statuses
    return answers


def broken(server):
    """What is no JSON, no UTF-8, or too deep."""
    model = json.loads(server.ask("GET", "/v1/models")[1])["data"][0]["id"]
    text = json.dumps({"model": model, "messages": [{"role": "user", "content": "x"}]}).encode()
    bodies = [b"[" * 1_000_000, b'{"a":' * 100_000, b"\xff\xfe\x00", text.replace(b'"x"', b'"\xc3\x28"'), b"\xef\xbb\xbf" + text,
              text.replace(b'"x"', b'"\\ud800"'), text.replace(b'"x"', b'"\\u0000\\uffff"'), text[:-1], b"\0" * 1000, b"1e999999"]
    statuses = [server.chat(body) for body in bodies]
    assert all(status in (200, 400, 413, 422) for status in statuses), statuses
    for _ in range(300):
        edited = bytearray(text)
        for _ in range(random.randint(1, 8)):
            edited[random.randrange(len(edited))] = random.randrange(256)
        edited = bytes(edited).replace(b"}]", b'}],"max_tokens":1', 1)
        status = server.chat(edited)
        assert status in (200, 400, 404, 422), (status, edited)
    return f"answered {sorted(set(statuses))}"


def words(server):
    """Texts on which tokenizers are slow: one word, one space, one letter with many marks."""
    worst = 0
    for text in ["a" * 2_000_000, " " * 2_000_000, "\u0301" * 1_000_000, "中" * 650_000, "1" * 2_000_000, "\n \n" * 700_000,
                 "aA" * 1_000_000, "😀" * 500_000, "a" * 10_000_000]:
        start = time.time()
        status, _ = server.ask("POST", "/tokenize", json.dumps({"prompt": text}, ensure_ascii=False).encode())
        worst = max(worst, time.time() - start)
        assert status == (413 if len(text) > 9_000_000 else 200), status
        server.well("long words")
    assert worst < 30, worst
    return f"2 MB in {worst:.1f} s at most"


def heads(server):
    """Floods of headers, and requests that are none."""
    start = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"
    requests = {
        "many": start + b"".join(b"x-%d: 1\r\n" % i for i in range(10_000)) + b"\r\n",
        "large": start + b"x: " + b"y" * 10_000_000 + b"\r\n\r\n",
        "line": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
        "noise": bytes(random.randrange(256) for _ in range(10_000)) + b"\r\n\r\n",
        "twice": start + b"content-length: 5\r\ncontent-length: 6\r\n\r\n",
        "both": b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "chunk": b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
    }
    lines = {name: server.raw(data) for name, data in requests.items()}
    for name, line in lines.items():
        assert line == "" or line.split()[1] in ("400", "401", "414", "431"), (name, line)
    return lines


def paths(server):
    """Paths that lead elsewhere."""
    for path in ["/../../../etc/passwd", "/v1/sessions/..%2f..%2fetc", "/v1/sessions/%00", "/v1/sessions/" + "a" * 20_000, "//", "/%",
                 "/v1/sessions/a%0d%0ax:%20y", "/v1/models/..", "/v1/snapshots/%2e%2e", "/metrics/../v1/models", "/health;x", "*"]:
        line = server.raw(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n".encode()
                          + "".join(f"{k}: {v}\r\n" for k, v in server.headers().items()).encode() + b"connection: close\r\n\r\n")
        assert line == "" or line.split()[1] in ("400", "404", "405", "409", "414", "501"), (path, line)
    return "none leads anywhere"


def keys(server):
    """Whether the time for a wrong key says how much of it is right."""
    if not server.key:
        return "skipped: no --key"
    right = server.key
    wrong = {"first letter": "~" + right[1:], "last letter": right[:-1] + "~", "all": "~" * len(right), "short": "~"}
    times = {name: [] for name in wrong}
    connection = http.client.HTTPConnection(server.host.hostname, server.host.port, timeout=30)
    for _ in range(3000):
        for name in random.sample(list(wrong), len(wrong)):
            start = time.perf_counter()
            connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {wrong[name]}"})
            reply = connection.getresponse()
            reply.read()
            times[name].append(time.perf_counter() - start)
            assert reply.status == 401
    medians = {name: statistics.median(all) * 1e6 for name, all in times.items()}
    spread = max(medians.values()) - min(medians.values())
    assert spread < 0.1 * min(medians.values()), medians
    return ", ".join(f"{name} {us:.1f} µs" for name, us in medians.items())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8080")
    parser.add_argument("--key")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--only")
    args = parser.parse_args()
    server = Server(args)
    for attack in (heads, paths, broken, words, large, many, slow, keys):
        if args.only and attack.__name__ != args.only:
            continue
        start = time.time()
        told = attack(server)
        server.well(attack.__name__)
        peak, planned = server.memory()
        print(f"{attack.__name__:7} {time.time() - start:5.1f} s, {peak / 2**20:.0f} of {planned / 2**20:.0f} MiB:", told, flush=True)
        assert peak <= planned, "more memory than was planned"


if __name__ == "__main__":
    main()

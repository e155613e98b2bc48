"""Measures the model of a running `fathom serve`, row by row of the README's table.

    fathom serve MODEL --port 8000 &
    python3 evaluate.py --base-url http://127.0.0.1:8000 [--documents 100] [--lengths 4096,65536] [--only needles,hca] [--json OUT]
    python3 evaluate.py --only million --texts 20 --asks 5 [--from-text 7]

Texts are those of training's writers, from other seeds, with invented names and natural text that training does not have; prompts go
as tokens of build/tokenizer.json, which must be the model's. Answers are greedy and must equal what was expected, character by
character. Ends with 1 where a row has less than was asked.
"""

import argparse
import json
import math
import random
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import tasks
from tasks import ANSWER, ASSISTANT, BOS, EOS, NAMES, USER, Haystack, T, natural_texts

ENCODER = tasks.Encoder()
# How many names are invented, and how many of those words, where rows have both: their own, whatever training's shares are.
MIX = dict(new=0.45, words=0.4)


class Server:
    def __init__(self, base):
        self.base = base
        self.model = json.load(urllib.request.urlopen(base + "/v1/models"))["data"][0]["id"]
        # Prompts go as tokens, so a model of another tokenizer would read another text.
        text = " ".join(NAMES) + natural_texts()["held_out"][0][1]
        if self.post("/tokenize", {"prompt": text, "add_special_tokens": False})["tokens"] != ENCODER.ids(text):
            raise SystemExit(f"build/tokenizer.json is not the tokenizer of {self.model}: run prepare.py --tokenizer MODEL/tokenizer.json")

    def post(self, path, body):
        body = json.dumps({"model": self.model, "temperature": 0, **body}).encode()
        request = urllib.request.Request(self.base + path, body, {"content-type": "application/json"})
        for _ in range(50):
            try:
                return json.load(urllib.request.urlopen(request, timeout=7200))
            except urllib.error.HTTPError as e:
                if e.code != 429:
                    raise RuntimeError(e.read().decode()) from e
                time.sleep(1)
        raise RuntimeError(f"{self.base} is busy with others")

    def complete(self, text, most=160, before=()):
        """The answer to a text. `before`: tokens of what comes before it."""
        return self.post("/v1/completions", {"prompt": [*before, *ENCODER.ids(text)], "max_tokens": most})["choices"][0]["text"]

    def chat(self, messages, most=160, **more):
        body = {"messages": messages, "max_tokens": most, "thinking": {"type": "disabled"}, **more}
        return self.post("/v1/chat/completions", body)["choices"][0]["message"]


def cut(page):
    """The prompt of a page's last answer, and that answer."""
    text = page.text()
    at = text.rindex(ANSWER) + len(ANSWER)
    return text[:at], text[at:].removesuffix(EOS)


def characters(tokens, natural):
    """About so many characters make so many tokens."""
    return int((tokens - 160) * (2.45 if natural else 4.35))


def fitting(tokens, write, natural=None):
    """A page of at most `tokens` tokens, and nearly so many."""
    size = characters(tokens, natural)
    while True:
        page = write(size)
        used = len(ENCODER.ids(page.text()))
        if 0.9 * tokens <= used <= tokens or tokens < 600:
            return page
        size = int(size * min(1.3, 0.97 * tokens / used))


class Rows:
    """What was asked, and how much was right. `documents`: texts of a row; `lengths`: tokens of them, where a group has several;
    `texts` and `asks`: which texts of a million tokens, and how many questions about each."""

    def __init__(self, server, documents, lengths, texts, asks):
        self.server, self.documents, self.lengths, self.texts, self.asks = server, documents, lengths, texts, asks
        self.table, self.pool = [], ThreadPoolExecutor(4)

    def short(self):
        """Whether a row has less than was asked."""
        return any(row["right"] < row["goal"] * row["of"] for row in self.table if "goal" in row)

    def add(self, name, goal, pages):
        """Asks every page; an answer must be the one expected."""
        start = time.time()
        asked = [cut(page) for page in pages]
        answers = list(self.pool.map(lambda a: self.server.complete(a[0]), asked))
        wrong = [(expected, answer) for (_, expected), answer in zip(asked, answers) if answer.strip() != expected.strip()]
        self.report(name, goal, len(asked) - len(wrong), len(asked), wrong, time.time() - start)

    def report(self, name, goal, right, count, wrong, seconds):
        self.table.append(dict(name=name, goal=goal, right=right, of=count, seconds=round(seconds, 1), wrong=wrong))
        print(f"{'  ' if right >= goal * count else '! '}{name}: {right} of {count} ({100 * right / max(1, count):.1f} %, "
              f"{100 * goal:.0f} asked), {seconds:.0f} s", flush=True)
        for expected, answer in wrong[:3]:
            print(f"      not {answer!r} but {expected!r}", flush=True)

    def find(self, name, goal, tokens, writer, kind="single", count=None, natural=None, place="after", **how):
        """A row of texts that hide something, each with one question of a kind."""
        pages = []
        for i in range(count or self.documents):
            r = random.Random(f"{name} {tokens} {i}")
            write = lambda size: tasks.conversation(r, size, natural, facts=(8, 12), asks=(1, 1), writer=writer, place=place, think=False,
                                                    unseen=True, fits=few_tokens, **how)
            page = fitting(tokens, write, natural)
            while page.questions[0].kind != kind:
                page = fitting(tokens, write, natural)
            pages.append(page)
        self.add(f"{name}, {tokens:,} tokens", goal, pages)


def few_tokens(name):
    """Whether a name is one of two to four tokens."""
    return 2 <= len(ENCODER.ids(" " + name)) <= 4


def needles(rows, held):
    for tokens in rows.lengths:
        near = tokens <= 4096
        rows.find("seen names", 0.99 if near else 0.98, tokens, single_code, separator=" ", new=0.0, kinds=["code"])
        rows.find("invented names", 0.95 if near else 0.90, tokens, single_code, separator=" ", new=1.0, kinds=["code"], words=0.0)
        rows.find("words as names", 0.95 if near else 0.90, tokens, single_code, separator=" ", new=1.0, kinds=["code"], words=1.0)


def single_code(hay):
    return hay.single("code")


def one_of_several(hay):
    """An attribute of who has more than one."""
    has = Counter(fact.name for fact in hay.facts)
    return hay.single(among=[fact for fact in hay.facts if has[fact.name] > 1])


def larger_alike(hay):
    """The larger of two codes that begin with the same digit."""
    pairs = [(a, b) for a in hay.of("code") for b in hay.of("code") if a is not b and a.value[0] == b.value[0]]
    return hay.larger(hay.r.choice(pairs)) if pairs else hay.single()


def million(rows, held):
    """A few texts of a million tokens and some more, each with 20 needles, some of which are asked for; the server keeps what it
    read between questions."""
    least, many = 1_000_000, 20
    wrong, right, count, start = [], 0, 0, time.time()
    for i in rows.texts:
        r = random.Random(f"million {i}")
        # Room for what comes out shorter.
        page = fitting(1_037_000, lambda size: tasks.conversation(r, size, facts=(many, many), asks=(1, 1), new=0.0, kinds=["code"],
                                                                  place="after", separator=" ", writer=single_code))
        text = ENCODER.ids(page.text()[:page.first_question])
        assert len(text) >= least, f"text {i} has {len(text):,} tokens"
        for fact in page.hay.of("code")[:rows.asks]:
            answer = rows.server.complete(f" What is the code of {fact.name}?{ASSISTANT}{ANSWER}", 40, text)
            expected = T["answers"]["code"].replace("@", fact.name).replace("%", fact.value)
            count, good = count + 1, answer.strip() == expected
            right += good
            wrong += [] if good else [(expected, answer)]
            print(f"      text {i}, {len(text):,} tokens, {right} of {count}: {answer!r} after {time.time() - start:.0f} s", flush=True)
    rows.report(f"seen names, {least:,} tokens, texts {rows.texts.start} to {rows.texts.stop - 1}, {rows.asks} needles of each", 0.95, right, count, wrong,
                time.time() - start)


def places(rows, held):
    for name, how in {"a space": dict(separator=" "), "a newline": dict(separator="\n"), "a blank line": dict(separator="\n\n"),
                      "in its own turn": dict(place="turn"), "before the text": dict(place="before", separator="\n\n")}.items():
        rows.find(f"question {name}", 0.97, 4096, single_code, new=0.0, **how)
    rows.find("five phrasings never trained", 0.97, 4096, single_code, new=0.0, held_out=True)


def natural(rows, held):
    trained = tasks.Natural("train")
    for kind in sorted(trained.kinds):
        # A machine has some twenty licences: where none of them is held out, those that were trained.
        texts, name = (held, f"{kind} text") if kind in held.kinds else (trained, f"{kind} text that was trained")
        for tokens in rows.lengths:
            rows.find(f"needle in {name}", 0.97, tokens, single_code, count=rows.documents // len(trained.kinds) + 1,
                      natural=Kind(texts, kind), new=0.0)


class Kind:
    """Natural text of one kind."""

    def __init__(self, natural, kind):
        self.natural, self.kind = natural, kind

    def sentences(self, r, size):
        return self.natural.sentences(r, size, self.kind)


def absent(rows, held):
    for tokens in rows.lengths:
        rows.find("needle absent", 0.95, tokens, Haystack.none, "absent", **MIX)


def kinds(rows, held):
    """Where there are two names, also with the question before the text, which is harder."""
    for name, kind, writer in (("an attribute of several", "single", one_of_several), ("which person has code …", "reverse", Haystack.reverse),
                               ("the larger of two", "larger", Haystack.larger), ("two-hop", "two_hop", Haystack.two_hop),
                               ("the same code as", "same", Haystack.same), ("several codes", "several", Haystack.several)):
        rows.find(f"{name}, seen names", 0.90, 4096, writer, kind, new=0.0)
        rows.find(f"{name}, half of them invented", 0.90, 4096, writer, kind, **MIX)
        rows.find(f"{name}, asked before the text", 0.90, 4096, writer, kind, new=0.0, place="before")
    rows.find("the larger of two that begin alike", 0.90, 4096, larger_alike, "larger", new=0.0, kinds=["code"])


def hca(rows, held):
    for tokens in (2048, 4096, 16384):
        pages = []
        for i in range(rows.documents):
            r = random.Random(f"topic {tokens} {i}")
            pages.append(fitting(tokens, lambda size: tasks.topical(r, size, think=False)))
        rows.add(f"the topic of the whole text, {tokens:,} tokens", 0.90, pages)


def tools(rows, held):
    for words in ("trained", "held_out", "natural"):
        formed, right, count, bad, wrong, start = 0, 0, 0, [], [], time.time()
        for i in range(rows.documents):
            r = random.Random(f"tool {words} {i}")
            page = tasks.tool_use(r, held, words, unseen=True)
            if not page.asked:
                continue
            request, values = page.asked[0]
            message = rows.server.chat([{"role": "user", "content": request}],
                                       tools=[{"type": "function", "function": json.loads(page.definition)}])
            calls, made = message.get("tool_calls") or [], None
            # The server makes a call only of what it can read and what was declared; the rest is text.
            if len(calls) == 1 and calls[0]["function"]["name"] == page.tool:
                made = json.loads(calls[0]["function"]["arguments"])
            said = (f"{page.tool} {values}", f"{calls[0]['function'] if calls else message['content']}")
            count, formed = count + 1, formed + (made is not None)
            same = made == values
            right += same
            bad += [said] if made is None else []
            wrong += [said] if made is not None and not same else []
        what = {"trained": "a tool call", "held_out": "a call of a tool never trained", "natural": "a call of a tool of any words"}[words]
        rows.report(f"{what}, well-formed", 0.95, formed, count, bad, time.time() - start)
        rows.report(f"{what}, with the right values", 0.90, right, count, wrong, 0)


def json_answers(rows, held):
    formed, right, count, bad, wrong, start = 0, 0, 0, [], [], time.time()
    for i in range(rows.documents):
        r = random.Random(f"json {i}")
        page = tasks.conversation(r, 1500, writer=Haystack.json, facts=(2, 6), asks=(1, 1), place="after", think=False,
                                  **MIX, unseen=True)
        prompt, expected = cut(page)
        content = prompt[prompt.rindex(USER) + len(USER):prompt.rindex(ASSISTANT)]
        answer = rows.server.chat([{"role": "user", "content": content}])["content"]
        try:
            made = json.loads(answer)
        except ValueError:
            made = None
        good = made == json.loads(expected)
        count, formed, right = count + 1, formed + isinstance(made, dict), right + good
        bad += [] if isinstance(made, dict) else [(expected, answer)]
        wrong += [] if good else [(expected, answer)]
    rows.report("a JSON answer, well-formed", 0.95, formed, count, bad, time.time() - start)
    rows.report("a JSON answer, right", 0.90, right, count, wrong, 0)


def talk(rows, held):
    asked = [(say, entry["reply"]) for entry in T["chat"] for say in entry["say"]]
    answers = list(rows.pool.map(lambda a: rows.server.chat([{"role": "user", "content": a[0]}])["content"], asked))
    wrong = [(reply, answer) for (_, reply), answer in zip(asked, answers) if answer != reply]
    rows.report("small talk it was taught", 0.95, len(asked) - len(wrong), len(asked), wrong, 0)
    r = random.Random("unknown")
    asked = [tasks.unknown(r, held) for _ in range(rows.documents)] + UNKNOWN
    answers = list(rows.pool.map(lambda a: rows.server.chat([{"role": "user", "content": a}])["content"], asked))
    wrong = [(a, answer) for a, answer in zip(asked, answers) if answer != T["fallback"]["reply"]]
    rows.report("anything else: says what it is", 0.90, len(asked) - len(wrong), len(asked), wrong, 0)


UNKNOWN = ["What is the meaning of life?", "Explain quantum physics.", "How do I cook rice?", "Write an essay about Rome.",
           "Who won the world cup?", "What is the best programming language?", "Translate 'good morning' into French.",
           "What is the square root of 16?", "Give me a recipe for bread.", "Why is the sky blue?", "asdf", "lorem ipsum dolor",
           "Can you summarise a book?", "How far is the moon?", "What should I wear today?", "Play a song."]


def perplexity(rows, held):
    """Of held-out natural text and of the filler, at 4,096 tokens, from `echo`ed log probabilities."""
    r = random.Random("perplexity")
    texts = {"filler": [" ".join(tasks.filler(r, 17_000)) for _ in range(4)]}
    for kind in sorted(held.kinds):
        texts[kind] = [held.piece(r, 12_000, kind) for _ in range(4)]
    for kind, some in texts.items():
        total, count = 0.0, 0
        for text in some:
            ids = ENCODER.ids(BOS + text)[:4096]
            told = rows.server.post("/v1/completions", {"prompt": ids, "max_tokens": 1, "echo": True, "logprobs": 1})
            probabilities = told["choices"][0]["logprobs"]["token_logprobs"][1:len(ids)]
            total, count = total - sum(probabilities), count + len(probabilities)
        print(f"  perplexity of {kind}: {math.exp(total / count):.2f} over {count:,} tokens", flush=True)
        rows.table.append(dict(name=f"perplexity {kind}", value=math.exp(total / count), tokens=count))


GROUPS = dict(needles=needles, places=places, natural=natural, absent=absent, kinds=kinds, hca=hca, tools=tools, json=json_answers,
              talk=talk, perplexity=perplexity, million=million)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--base-url", default="http://127.0.0.1:8000")
    p.add_argument("--documents", type=int, default=100)
    p.add_argument("--only", help="groups, with commas: " + ", ".join(GROUPS))
    p.add_argument("--lengths", default="4096,65536", help="of the texts of needles, natural and absent, in tokens [%(default)s]")
    p.add_argument("--texts", type=int, default=1, help="texts of a million tokens")
    p.add_argument("--from-text", type=int, default=0, metavar="N", help="the first of them, to go on another day")
    p.add_argument("--asks", type=int, default=20, help="how many of the 20 needles of each to ask for")
    p.add_argument("--json", help="the table as JSON")
    a = p.parse_args()
    only = a.only.split(",") if a.only else [g for g in GROUPS if g != "million"]
    rows = Rows(Server(a.base_url), a.documents, [int(n) for n in a.lengths.split(",")], range(a.from_text, a.from_text + a.texts), a.asks)
    held = tasks.Natural("held_out")
    for name in only:
        GROUPS[name](rows, held)
        if a.json:
            with open(a.json, "w") as f:
                json.dump(rows.table, f, ensure_ascii=False, indent=1)
    return rows.short()


if __name__ == "__main__":
    sys.exit(main())

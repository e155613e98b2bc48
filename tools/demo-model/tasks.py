"""Samples: texts that hide things, questions and answers, as the V4 format lays them out.

A sample is written as text with a weight for each piece, and with *copies*: the answer's characters that were copied, where
from, and what they were found by. `encode` turns characters into tokens. Evaluation takes the same writers (`conversation`).
"""

import bisect
import functools
import json
import random
import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

HERE = Path(__file__).parent
TEXTS = json.loads((HERE / "../../crates/fathom/assets/demo-text.json").read_text())
T = TEXTS["training"]
SLOTS = {letter: words.split() for letter, words in TEXTS["slots"].items()}
NAMES = SLOTS["X"]
SYLLABLES = T["syllables"].split()
VALUES = {name: a["values"].split() for name, a in T["attributes"].items()}
NEEDLES = {name: a["needle"] for name, a in T["attributes"].items()}
NEEDLES["code"] = TEXTS["needle"] + NEEDLES["code"]
TOPICS = {name: words.split() for name, words in T["topics"].items()}
RELATIONS = T["two_hop"]["relations"].split()
BOS, EOS, USER, ASSISTANT, THINK, ANSWER = (
    "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<think>", "</think>")
SEPARATORS = [" ", "\n", "\n\n"]
# Weights of what is to be predicted: filler, a question, an answer's own words, what was copied, what was decided, and a whole text's topic.
FILLER, NATURAL, ASKED, SAID, COPIED, DECIDED, TOPIC = 0.1, 0.15, 0.03, 0.5, 2.0, 4.0, 40.0

# How many invented names are words of natural text.
WORDS = 0.55


@dataclass
class Copy:
    """Characters of an answer and where they come from; `by` and `found` are the end of what names them, in both."""

    to: tuple
    source: tuple
    by: int
    found: int
    key: str
    tell: int  # a character whose token decides whether the thing is there at all


@dataclass
class Page:
    """A text that grows, with weights by piece."""

    parts: list = field(default_factory=list)
    starts: list = field(default_factory=list)
    weights: list = field(default_factory=list)
    length: int = 0
    copies: list = field(default_factory=list)
    # Where facts stand: (value, the name's last character).
    facts: list = field(default_factory=list)
    # Paragraphs of a topic: (start, end, topic).
    topics: list = field(default_factory=list)
    first_question: int = 0

    def put(self, text, weight=0.0):
        """Appends, returns where it stands."""
        at = self.length
        if text:
            self.parts.append(text)
            self.starts.append(at)
            self.weights.append(weight)
            self.length += len(text)
        return at, self.length

    def text(self):
        return "".join(self.parts)


def code(r):
    return f"{r.randrange(100_000):05d}"


def kept_back(name):
    """Whether a name is one of the tenth that training never has."""
    return zlib.crc32(name.lower().encode()) % 10 == 0


@functools.cache
def natural_texts():
    """Natural text as `prepare.py` found it: {"train" | "held_out": [(kind, text)]}."""
    return json.loads((HERE / "build/natural.json").read_text())


@functools.cache
def natural_words():
    """Words of natural text, as names."""
    found = {word.capitalize() for _, text in natural_texts()["train"] for word in re.findall(r"\b[a-z]{4,9}\b", text)}
    return sorted(found - set(NAMES) - {value.capitalize() for values in VALUES.values() for value in values})


def invented(r, unseen=False, words=WORDS):
    """A name that nobody has: a word in a share `words` of them, else syllables, at times with letters between. `unseen`: of those
    that are kept back."""
    while True:
        x = r.random()
        if x < words:
            name = r.choice(natural_words())
        elif x < words + (1 - words) * 0.6:
            name = "".join(r.choice(SYLLABLES) for _ in range(r.choice((2, 2, 3)))).capitalize()
        else:
            part = lambda: r.choice(T["onsets"]) + r.choice("aeiou") + r.choice(T["codas"])
            name = "".join(part() for _ in range(r.choice((1, 2, 2)))).capitalize()
        if kept_back(name) == unseen:
            return name


def resembling(r, name):
    """A name that begins or ends as another does."""
    cut = r.randrange(1, len(name))
    other = invented(r)
    return name[:cut] + other[-2:].lower() if r.random() < 0.5 else (other[:2] + name[cut:].lower()).capitalize()


def sentence(r, nouns=None):
    """One of the templates, as `fathom demo` fills them; nouns of a topic where one is given."""
    words = []
    for word in r.choice(TEXTS["filler"]).split(" "):
        body, mark = (word[:-1], word[-1]) if word[-1] in ".," else (word, "")
        if body == "#":
            body = str(r.randrange(2, 100))
        elif body == "N" and nouns:
            body = r.choice(nouns)
        elif len(body) == 1 and body in SLOTS:
            body = r.choice(SLOTS[body])
        words.append(body + mark)
    return " ".join(words)


class Natural:
    """Pieces of natural text, in sentences or lines with what parts them."""

    def __init__(self, part):
        kinds = {}
        for kind, text in natural_texts()[part]:
            kinds.setdefault(kind, []).append(text)
        self.kinds = {kind: kinds[kind] for kind in sorted(kinds)}

    def piece(self, r, characters, kind=None):
        texts = self.kinds[kind or r.choice(sorted(self.kinds))]
        found = ""
        while len(found) < characters:
            text = r.choice(texts)
            at = r.randrange(max(1, len(text) - characters))
            at = text.rfind("\n", 0, at) + 1
            found += text[at:at + characters - len(found)].strip("\n") + "\n"
        return found

    def sentences(self, r, characters, kind=None):
        text, parts, at = self.piece(r, characters, kind), [], 0
        for i, letter in enumerate(text):
            if letter == "\n" or letter == "." and text[i + 1:i + 2] == " ":
                parts.append(text[at:i + 1])
                at = i + 1
        return [part for part in parts if part.strip()] or [text]


@dataclass
class Fact:
    """A sentence with a key and a value; `kind` is an attribute, a relation or `same`."""

    kind: str
    name: str
    value: str
    template: str

    def parts(self):
        """Pieces of the sentence, with '@' for the name and '%' for the value."""
        template = self.template.replace("~", self.kind).replace("&", "%").replace("$", self.kind)
        found, rest = [], template
        while rest:
            at = min((i for i in (rest.find("@"), rest.find("%")) if i >= 0), default=len(rest))
            if at:
                found.append(rest[:at])
            if at < len(rest):
                found.append(rest[at])
            rest = rest[at + 1:]
        return found

    def text(self):
        return "".join({"@": self.name, "%": self.value}.get(p, p) for p in self.parts())

    def key(self):
        return f"{self.kind} {self.name}"

    @property
    def found(self):
        """The name, where an answer says it because of the value."""
        return self.name


@dataclass
class Question:
    """What is asked, and the answer as pieces: text, ('copy', fact, 'name' | 'value'), ('decide', text)."""

    ask: str
    answer: list
    attribute: str = ""
    name: str = ""
    kind: str = "single"
    # Names that the question has and the answer repeats.
    names: tuple = ()

    def reply(self):
        return "".join(p if isinstance(p, str) else p[1] if p[0] == "decide" else getattr(p[1], p[2]) for p in self.answer)


class Haystack:
    """Facts about people, and questions for them."""

    def __init__(self, r, count, new=0.6, alike=0.0, kinds=None, held_out=False, unseen=False, words=WORDS, fits=None):
        """`new`: how many names are invented; `alike`: how many codes begin as another does; `held_out`: questions, and `unseen`: names,
        that training does not have; `words`: how many invented names are words."""
        self.r, self.held_out = r, held_out
        kinds = kinds or ["code"] * 5 + ["city", "colour", "instrument"]
        names = []
        while len(names) < count + 5:
            name = r.choice(NAMES)
            if r.random() < new:
                strange = [n for n in names if n not in NAMES]
                name = resembling(r, r.choice(strange)) if strange and r.random() < 0.25 else invented(r, unseen, words)
            strange = name not in NAMES
            if name not in names and len(name) > 2 and not (strange and (kept_back(name) != unseen or fits and not fits(name))):
                names.append(name)
        # Whom no fact is about, and who is to have somebody's code.
        self.absent, self.linked = names[count:count + 4], names[count + 4]
        self.facts, self.links, codes = [], [], []
        for name in names[:count]:
            kind = r.choice(kinds)
            value = code(r) if kind == "code" else r.choice(VALUES[kind])
            if kind == "code":
                if codes and r.random() < 0.5 / count:
                    value = list(r.choice(codes))
                    value[r.randrange(5)] = str(r.randrange(10))
                    value = "".join(value)
                # What makes the larger of two hard: codes that begin as another does.
                elif codes and alike and r.random() < alike:
                    cut = r.choice((1, 1, 2, 2, 3))
                    value = r.choice(codes)[:cut] + value[cut:]
                while value in codes:
                    value = code(r)
                codes.append(value)
            self.facts.append(Fact(kind, name, value, r.choice(NEEDLES[kind])))
        # Some people have several attributes.
        for fact in r.sample(self.facts, len(self.facts) // 3):
            kind = r.choice([k for k in VALUES if k != fact.kind and k != "code"])
            self.facts.append(Fact(kind, fact.name, r.choice(VALUES[kind]), r.choice(NEEDLES[kind])))

    def of(self, kind):
        return [f for f in self.facts if f.kind == kind]

    def phrase(self, kind, name, questions=None):
        questions = questions or T["held_out_questions" if self.held_out else "questions"]
        ask = first_up(self.r.choice(questions).replace("$", kind).replace("@", name))
        if not self.held_out and self.r.random() < 0.12:
            ask = self.r.choice(T["leads"]) + ask
        if not self.held_out and self.r.random() < 0.08:
            ask += self.r.choice(T["tails"])
        return ask

    def said(self, fact):
        """The sentence of an answer, for a fact."""
        before, after = T["answers"][fact.kind].split("%")
        first, second = before.split("@")
        return [first, ("copy", fact, "name"), second, ("copy", fact, "value"), after]

    def missing(self, kind, name):
        first, second = T["absent"].replace("$", kind).split("@")
        here = Fact(kind, name, "", "")
        cut = second.index(" not")
        return [first, ("copy", here, "name"), second[:cut], ("decide", second[cut:cut + 4]), second[cut + 4:]]

    def single(self, kind=None, among=None):
        fact = self.r.choice(among or (self.of(kind) if kind else None) or self.facts)
        return Question(self.phrase(fact.kind, fact.name), self.said(fact), fact.kind, fact.name, "single", (fact.name,))

    def none(self):
        r = self.r
        kind = r.choice(["code", "code", "city", "colour", "instrument"])
        has = {f.name for f in self.facts if f.kind == kind}
        others = [f.name for f in self.facts if f.name not in has]
        name = r.choice(others) if others and r.random() < 0.4 else r.choice(self.absent)
        return Question(self.phrase(kind, name), self.missing(kind, name), kind, name, "absent", (name,))

    def reverse(self):
        r, codes = self.r, self.of("code")
        if not codes or r.random() < 0.12:
            value = code(r)
            first, second = T["reverse"]["absent"].split("%")
            cut = second.index(" not")
            answer, kind = [first + value + second[:cut], ("decide", second[cut:cut + 4]), second[cut + 4:]], "absent"
        else:
            fact = r.choice(codes)
            value, kind = fact.value, "reverse"
            first, second = T["reverse"]["answer"].split("%")
            before, second = second.split(" that")
            second, last = second.split("@")
            answer = [first + value + before, ("decide", " that"), second, ("copy", fact, "found"), last]
        return Question(r.choice(T["reverse"]["questions"]).replace("%", value), answer, kind=kind)

    def larger(self, pair=None):
        """The larger of two codes, of any two or of those."""
        codes = self.of("code")
        if len(codes) < 2:
            return self.single()
        one, two = pair or self.r.sample(codes, 2)
        most = max(one, two, key=lambda f: f.value)
        first, last = T["larger"]["answer"].split("@")
        ask = self.r.choice(T["larger"]["questions"]).replace("@", one.name).replace("&", two.name)
        answer = [*self.said(one), " ", *self.said(two), " " + first.rstrip(), ("decide", " " + most.name), last]
        return Question(ask, answer, kind="larger", names=(one.name, two.name))

    def two_hop(self):
        r = self.r
        fact, relation = r.choice(self.facts), r.choice(RELATIONS)
        taken = {fact.name} | {f.name for f in self.links if f.kind == relation}
        who = r.choice([name for name in self.absent + [f.name for f in self.facts] if name not in taken])
        link = Fact(relation, who, fact.name, r.choice(T["two_hop"]["needle"]))
        self.links.append(link)
        first, second = T["two_hop"]["answer"].replace("~", relation).split("@")
        second, last = second.split("&")
        ask = r.choice(T["two_hop"]["questions"]).replace("~", relation).replace("$", fact.kind).replace("@", who)
        answer = [first, ("copy", link, "name"), second, ("copy", link, "value"), last + " ", *self.said(fact)]
        return Question(ask, answer, kind="two_hop", names=(who,))

    def same(self):
        codes = self.of("code")
        if not codes or any(f.kind == "same" for f in self.links):
            return self.single()
        fact, who = self.r.choice(codes), self.linked
        template = TEXTS["kinds"]["chain_link"]
        link = Fact("same", who, fact.name, template.replace("&", "%"))
        self.links.append(link)
        first, second = template.split("@")
        cut = second.index(" the same")
        second, decided, (third, last) = second[:cut], " the", second[cut + 4:].split("&")
        answer = [first, ("copy", link, "name"), second, ("decide", decided), third, ("copy", link, "value"), last + " ",
                  *self.said(fact)]
        return Question(self.phrase("code", who), answer, "code", who, "same", (who,))

    def several(self):
        codes = self.of("code")
        if len(codes) < 2:
            return self.single()
        some = self.r.sample(codes, self.r.randrange(2, min(4, len(codes)) + 1))
        names = [f.name for f in some]
        ask = TEXTS["kinds"]["multi_question"].replace("@", f"{', '.join(names[:-1])} and {names[-1]}")
        answer = []
        for fact in some:
            answer += [" "] * bool(answer) + self.said(fact)
        return Question(ask, answer, kind="several", names=tuple(names))

    def strange(self):
        """Something the model cannot say of any text."""
        r = self.r
        if r.random() < 0.3:
            ask = TEXTS["kinds"]["aggregate_question"].replace("&", r.choice(SLOTS["L"]))
            return Question(ask, [T["fallback"]["sums"]], kind="strange")
        ask = f"{r.choice(T['fallback']['openings'])} the {r.choice(SLOTS['N'])}{r.choice(['?', '.', ''])}"
        return Question(ask, [T["fallback"]["reply"]], kind="strange")

    def json(self):
        kind = self.r.choice(["code", "code", "city", "colour", "instrument"])
        facts, fact = self.of(kind), None
        if facts and self.r.random() < 0.85:
            fact = self.r.choice(facts)
        name = fact.name if fact else self.r.choice(self.absent)
        start = ['{"name": "', ("copy", fact or Fact(kind, name, "", ""), "name"), f'", "{kind}":']
        if fact:
            answer = [*start, ("decide", ' "'), ("copy", fact, "value"), '"}']
        else:
            answer = [*start, ("decide", " null"), "}"]
        ask = self.r.choice(T["json"]["questions"]).replace("$", kind).replace("@", name)
        return Question(ask, answer, kind="json", names=(name,))


QUESTIONS = ([Haystack.single] * 26 + [Haystack.none] * 26 + [Haystack.strange] * 4 + [Haystack.reverse] * 13 + [Haystack.larger] * 24
             + [Haystack.two_hop] * 13 + [Haystack.same] * 4 + [Haystack.several] * 14 + [Haystack.json] * 5)


def hide(r, facts, sentences):
    """Facts among sentences at random places: [text or Fact]."""
    mixed = list(sentences)
    for fact in facts:
        mixed.insert(r.randrange(len(mixed) + 1), fact)
    return mixed


def write_text(page, mixed, natural, weight):
    """Writes a text; returns where each fact's name, value and end stand."""
    places = {}
    for i, part in enumerate(mixed):
        before = ""
        if i and isinstance(part, Fact):
            before = "" if page.parts[-1].endswith("\n") else " "
        elif i and natural:
            before = " " if isinstance(mixed[i - 1], Fact) and part[0] not in " \n" else ""
        elif i:
            before = " "
        if not isinstance(part, Fact):
            page.put(before + part, weight)
            continue
        page.put(before, weight)
        place = {}
        for piece in part.parts():
            text = {"@": part.name, "%": part.value}.get(piece, piece)
            place[{"@": "name", "%": "value"}.get(piece, "")] = page.put(text, weight)
        places[id(part)] = place
        page.facts.append((place["value"], place["name"][1] - 1))
    return places


def write_answer(page, question, places, asked, far):
    """Writes an answer with its copies. `asked`: where the question's names stand, to copy them from where it is far."""
    tell, name_end = page.length, page.length
    for piece in question.answer:
        if isinstance(piece, str):
            at, end = page.put(piece, SAID)
            tell = at + piece.rfind(" is") + 2 if " is" in piece else end - 1
            continue
        if piece[0] == "decide":
            page.put(piece[1], DECIDED)
            if question.kind in ("reverse", "larger"):
                name_end = page.length
            continue
        _, fact, what = piece
        place = places.get(id(fact))
        if what == "name":
            at = page.put(fact.name, COPIED)
            name_end = at[1] - 1
            if far and fact.name in asked:
                page.copies.append(Copy(at, asked[fact.name], at[0] - 1, asked[fact.name][0] - 1, "asked", tell))
        elif what == "value":
            at = page.put(fact.value, COPIED)
            page.copies.append(Copy(at, place["value"], name_end, place["name"][1] - 1, fact.key(), tell))
        else:  # the name of a code
            at = page.put(fact.name, COPIED)
            page.copies.append(Copy(at, place["name"], page.length, place["value"][1] - 1, f"code {fact.value}", tell))
    return page


def begin(page, r, think, prefix=None):
    """What a conversation begins with: how to think, a system's words."""
    if prefix:
        page.put(prefix + USER)
        return
    page.put(PROMPTS["thinking"].split(USER)[0] if think and r.random() < 0.6 else BOS)
    if r.random() < 0.12:
        page.put(r.choice(T["systems"]))
    page.put(USER)


def answer_now(page, think, kind, attribute="", name=""):
    """Marks that begin an answer, with a thought where one is wanted."""
    page.put(ASSISTANT)
    if think:
        page.put(THINK)
        thought = T["thoughts"][kind if name or kind != "single" else "text"]
        page.put(thought.replace("$", attribute).replace("@", name), SAID)
    page.put(ANSWER, SAID if think else 0.0)


def conversation(r, characters, natural=None, facts=(2, 8), asks=(2, 6), place=None, writer=None, think=None,
                 prefix=None, separator=None, **people):
    """A text with questions: after it, before it, or in a turn of their own. `characters` is the text's length; `prefix` what the
    conversation begins with, `people` are `Haystack`'s."""
    page = Page()
    hay = Haystack(r, r.randrange(facts[0], facts[1] + 1), **people)
    place = place or r.choices(["after", "turn", "before"], (50, 14, 36))[0]
    writers = [writer or r.choice(QUESTIONS) for _ in range(r.randrange(asks[0], asks[1] + 1))]
    # Several names that are far away from their answer are the hardest to repeat.
    if place == "before" and not writer and r.random() < 0.6:
        writers[0] = r.choice((Haystack.larger, Haystack.several, Haystack.several, Haystack.two_hop))
    asked = [write(hay) for write in writers]
    facts = hay.facts + hay.links
    think = r.random() < 0.1 if think is None else think
    begin(page, r, think, prefix)
    first = asked[0]
    names, far = {}, place == "before"
    if place == "before":
        names = write_question(page, first)
        page.put(separator or r.choice(SEPARATORS), 0.0)
    elif place == "turn" and r.random() < 0.5:
        page.put(r.choice(T["read"]["requests"]) + (separator or r.choice(SEPARATORS)))
    if natural:
        sentences = natural.sentences(r, characters)
    else:
        sentences = filler(r, characters)
    places = write_text(page, hide(r, facts, sentences), bool(natural), NATURAL if natural else FILLER)
    page.first_question = page.length
    if place == "turn":
        page.put(ASSISTANT + ANSWER)
        page.put(T["read"]["answer"], SAID)
        page.put(EOS, SAID)
        page.put(USER)
    for i, question in enumerate(asked):
        if i == 0 and place == "after":
            mark = separator or r.choice(SEPARATORS)
            page.put(mark[1:] if page.parts[-1].endswith("\n") and mark != " " else mark)
        if i:
            page.put(USER)
            far = False
        if i or place != "before":
            names = write_question(page, question)
        # Thoughts of earlier turns are not kept.
        answer_now(page, think and i + 1 == len(asked), "single" if question.name else "text", question.attribute, question.name)
        write_answer(page, question, places, names, far)
        page.put(EOS, SAID)
    page.keys = {f.key() for f in facts} | {f"code {f.value}" for f in hay.of("code")}
    page.questions, page.hay = asked, hay
    return page


def write_question(page, question):
    """Writes it and returns where its names stand."""
    at, _ = page.put(question.ask, ASKED)
    found = {}
    for name in question.names:
        i = question.ask.find(name)
        if i >= 0:
            found[name] = (at + i, at + i + len(name))
    return found


def filler(r, characters, about=None):
    found, size = [], 0
    while True:
        s = sentence(r, TOPICS[about] if about else None)
        size += len(s) + 1
        if size > characters:
            return found
        found.append(s)


def topical(r, characters, think=None):
    """A text whose paragraphs are about four topics, one of them in most; the first is about any, the last about another. That takes
    4,000 characters."""
    assert characters >= 4000, f"{characters} characters have no room for a topic of most"
    page = Page()
    main, *others = r.sample(sorted(TOPICS), 4)
    share, paragraphs, size = r.uniform(0.5, 0.75), [], 0
    tail = r.randrange(500, 1000)
    while size < characters - tail:
        topic = r.choice([main, *others]) if not paragraphs else main if r.random() < share else r.choice(others)
        part = " ".join(filler(r, r.randrange(200, 600), topic))
        paragraphs.append((topic, part))
        size += len(part) + 1
    mass = {t: sum(len(p) for topic, p in paragraphs if topic == t) for t in (main, *others)}
    while mass[main] < 1.35 * max(mass[t] for t in others) + tail:
        i = r.choice([i for i, (topic, _) in enumerate(paragraphs) if i and topic != main])
        mass[paragraphs[i][0]] -= len(paragraphs[i][1])
        paragraphs[i] = (main, " ".join(filler(r, len(paragraphs[i][1]), main)))
        mass[main] += len(paragraphs[i][1])
    paragraphs.append((others[0], " ".join(filler(r, tail, others[0]))))
    think = r.random() < 0.08 if think is None else think
    begin(page, r, think)
    place, joint = r.choices(["after", "turn"], (80, 20))[0], r.choice(SEPARATORS)
    for i, (topic, part) in enumerate(paragraphs):
        page.topics.append((*page.put(joint * (i > 0) + part, FILLER), sorted(TOPICS).index(topic)))
    page.first_question = page.length
    if place == "turn":
        page.put(ASSISTANT + ANSWER)
        page.put(T["read"]["answer"], SAID)
        page.put(EOS + USER)
    else:
        page.put(r.choice(SEPARATORS))
    page.put(r.choice(T["topic"]["questions"]), ASKED)
    answer_now(page, think, "topic")
    before, after = T["topic"]["answer"].split("^")
    page.put(before.rstrip(), SAID)
    page.put(" " + main, TOPIC)
    page.put(after + EOS, SAID)
    page.keys, page.topic = set(), main
    return page


def small_talk(r, natural, characters):
    """Short turns: what people type first, and what the model cannot do."""
    page, fresh = Page(), True
    while page.length < characters:
        think = r.random() < 0.12
        if fresh:
            begin(page, r, think)
        else:
            page.put(USER)
        x = r.random()
        if x < 0.6:
            entry = r.choice(T["chat"])
            ask, reply = r.choice(entry["say"]), entry["reply"]
        elif x < 0.92:
            ask, reply = unknown(r, natural), T["fallback"]["reply"]
        else:
            hay = Haystack(r, 1)
            question = hay.none()
            ask, reply = question.ask, question.reply()
        page.put(ask, ASKED)
        answer_now(page, think, "talk")
        page.put(reply + EOS, 1.0)
        fresh = think or r.random() < 0.5
    page.first_question, page.keys = 0, set()
    return page


def unknown(r, natural):
    """A short request about something the model knows nothing of."""
    words = " ".join(natural.piece(r, 200).split())
    cut = words[r.randrange(40):].partition(" ")[2].split(" ")
    some = " ".join(cut[:r.randrange(1, 9)])
    if r.random() < 0.3:
        return (some[:1].upper() + some[1:]) or "Why"
    nouns = f"the {r.choice(SLOTS['N'])}" if r.random() < 0.4 else some
    return f"{r.choice(T['fallback']['openings'])} {nouns}{r.choice('?.  ').strip()}"


PROMPTS = json.loads((HERE / "build/prompts.json").read_text())


def tool(r, natural, words="any"):
    """A verb and a noun, the tool's name of them, its parameters. `words`: `trained`, `held_out`, `natural` for any of natural text,
    or `any`, which is of natural text at times and else trained."""
    tools = T["tools"]
    verb, noun = r.choice(tools["verbs"].split()), r.choice(tools["nouns"].split())
    if words == "held_out":
        verb, noun = r.choice(tools["held_out"])
    if words == "natural" or words == "any" and r.random() < 0.12:
        found = [w for w in re.findall("[a-z]{3,9}", natural.piece(r, 300)) if len(w) > 2] + ["look", "page"]
        verb, noun = r.choice(found), r.choice(found)
    shape = r.choice(["{}_{}", "{}_{}", "{}_{}", "{}{}"])
    name = shape.format(verb, noun if "_" in shape else noun.capitalize())
    parameters = r.sample(sorted(tools["parameters"].items()), r.choice((1, 1, 1, 2, 2, 3)))
    return verb, noun, name, parameters


def value(r, kind, key, unseen):
    if kind == "integer":
        return r.randrange(1, 100)
    if key == "name":
        return invented(r, unseen) if r.random() < 0.4 else r.choice(NAMES)
    if key == "colour":
        return r.choice(VALUES["colour"])
    if key == "city":
        return r.choice(VALUES["city"]) if r.random() < 0.7 else invented(r, unseen)
    if key == "date":
        return f"20{r.randrange(24, 30)}-{r.randrange(1, 13):02d}-{r.randrange(1, 29):02d}"
    return " ".join(r.choice(SLOTS["A"] + SLOTS["N"]) for _ in range(r.randrange(1, 4)))


def tool_definition(r, name, verb, noun, parameters):
    properties = {}
    for key, kind in parameters:
        properties[key] = {"type": kind}
        if r.random() < 0.4:
            properties[key]["description"] = f"The {key} of the {noun}."
    about = r.choice([f"{verb.capitalize()} the {noun}.", f"{verb.capitalize()} a {noun} by its {parameters[0][0]}.", f"A tool for the {noun}."])
    schema = {"type": "object", "properties": properties}
    if r.random() < 0.7:
        schema["required"] = [key for key, _ in parameters]
    return {"name": name, "description": about, "parameters": schema}


def tool_request(r, verb, noun, parameters, values):
    tools = T["tools"]
    if len(parameters) == 1 and parameters[0][0] in ("city", "date", "name") and r.random() < 0.6:
        return first_up(r.choice(tools["one"]).replace("~", noun).replace("%", str(values[parameters[0][0]])))
    said = [f"{key} {values[key]}" for key, _ in parameters]
    said = said[0] if len(said) == 1 else ", ".join(said[:-1]) + " and " + said[-1]
    return first_up(r.choice(tools["requests"]).replace("~", f"{verb} the {noun}").replace("&", said))


def first_up(text):
    return text[:1].upper() + text[1:]


def write_call(page, name, sources, parameters, values):
    """A call as DSML. `sources`: where the tool's name and its parameters' stand in its definition, and the values in the request."""
    def copied(text, source):
        at = page.put(text, COPIED)
        if source:
            page.copies.append(Copy(at, source, at[0] - 1, source[0] - 1, "asked", at[0] - 1))

    page.put('\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="', 1.0)
    copied(name, sources["name"])
    page.put('">\n', 1.0)
    for key, kind in parameters:
        text = "true" if kind == "string" else "false"
        page.put('<｜DSML｜parameter name="', 1.0)
        copied(key, sources[f"key {key}"])
        page.put(f'" string="{text}">', 1.0)
        copied(str(values[key]), sources.get(f"value {key}"))
        page.put("</｜DSML｜parameter>\n", 1.0)
    page.put("</｜DSML｜invoke>\n</｜DSML｜tool_calls>" + EOS, 1.0)


def tool_use(r, natural, words="any", most=3, unseen=False):
    """A prompt with one tool, and up to `most` calls of it. `unseen`: with names that training does not have."""
    page = Page()
    verb, noun, name, parameters = tool(r, natural, words)
    definition = json.dumps(tool_definition(r, name, verb, noun, parameters), ensure_ascii=False)
    before, _ = PROMPTS["tools"].split(USER)
    if r.random() < 0.3:
        before = before.replace(BOS, BOS + r.choice(T["systems"]))
    start, _ = page.put(before.replace("TOOLS", definition), 0.02)

    def place(text, mark):
        at = start + page.parts[0].index(mark) + mark.index(text)
        return at, at + len(text)

    sources = {"name": place(name, f'"name": "{name}"')}
    sources |= {f"key {key}": place(key, f'"{key}": {{"type"') for key, _ in parameters}
    page.asked, think = [], r.random() < 0.1
    for _ in range(r.randrange(1, most + 1)):
        page.put(USER)
        if r.random() < 0.12:
            entry = r.choice(T["chat"])
            page.put(r.choice(entry["say"]), ASKED)
            answer_now(page, think, "talk")
            page.put(entry["reply"] + EOS, 1.0)
            continue
        values = {key: value(r, kind, key, unseen) for key, kind in parameters}
        request = tool_request(r, verb, noun, parameters, values)
        at, _ = page.put(request, ASKED)
        for key, _ in parameters:
            found = request.find(str(values[key]), request.find(key) + len(key) if f"{key} " in request else 0)
            sources[f"value {key}"] = (at + found, at + found + len(str(values[key]))) if found >= 0 else None
        answer_now(page, think, "tool")
        write_call(page, name, sources, parameters, values)
        page.asked.append((request, values))
        if r.random() < 0.5:
            result = r.choice(T["tools"]["results"]) if r.random() < 0.5 else f"{r.choice(SLOTS['A'])} {r.choice(SLOTS['N'])} {r.randrange(100)}"
            page.put(f"{USER}<tool_result>{result}</tool_result>{ASSISTANT}{ANSWER}")
            page.put(T["tools"]["reply"].replace("%", result) + EOS, 1.0)
    page.tool, page.definition = name, definition
    page.first_question, page.keys = 0, set()
    return page


def json_mode(r, natural, characters):
    """A conversation in the mode of the format that asks for JSON."""
    return conversation(r, characters, natural if r.random() < 0.3 else None, writer=Haystack.json, facts=(1, 5), place="after",
                        prefix=PROMPTS["json"].split(USER)[0])


def plain(r, natural, characters):
    """Natural text and nothing else."""
    page = Page()
    page.put(BOS)
    page.put(natural.piece(r, characters), 2 * NATURAL)
    page.first_question, page.keys = 0, set()
    return page


# What samples are of, and how often; what does not fit a length is `hidden`.
SHARES = {"talk": 0.07, "tools": 0.06, "json": 0.03, "natural": 0.04, "topic": 0.15, "hidden": 0.65}


# How many facts, and how many questions, a text of so many tokens has.
MANY = {256: ((2, 5), (2, 4)), 512: ((2, 8), (3, 6)), 1024: ((2, 12), (4, 9)), 2048: ((2, 16), (5, 12))}


def sample(r, tokens, natural):
    """A page of about so many tokens, which `MANY` has."""
    kind = r.choices(list(SHARES), list(SHARES.values()))[0]
    if kind == "talk":
        return small_talk(r, natural, min(tokens, 512) * 3)
    if kind == "tools" and 512 <= tokens <= 1024:
        # The prompt takes 390 of them.
        return tool_use(r, natural, most=1 if tokens == 512 else 3)
    if kind == "json" and tokens >= 512:
        return json_mode(r, natural, tokens * 2)
    if kind == "natural":
        return plain(r, natural, tokens * 4)
    if kind == "topic" and tokens >= 1024:
        return topical(r, tokens * 4.2 - 100)
    facts, asks = MANY[tokens]
    # What facts, questions and answers take is taken from the text.
    room = tokens - facts[1] * 13 - asks[1] * 32
    wild = r.random() < 0.35
    return conversation(r, int(max(60, room) * (2.7 if wild else 3.9) * r.uniform(0.6, 1.0)), natural if wild else None, facts, asks,
                        alike=0.3)


class Encoder:
    """Characters to tokens."""

    def __init__(self, path=HERE / "build/tokenizer.json"):
        self.tokenizer = Tokenizer.from_file(str(path))
        self.eos = self.tokenizer.token_to_id(EOS)

    def ids(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def encode(self, page, tokens):
        """A page as `Encoded`, cut to `tokens`; nothing where much would be cut."""
        text = page.text()
        made = self.tokenizer.encode(text, add_special_tokens=False)
        starts, ids = [a for a, _ in made.offsets], made.ids
        if len(ids) > tokens * 1.2:
            return None
        weights, piece, last = [], 0, len(page.starts) - 1
        for _, end in made.offsets:
            while piece < last and page.starts[piece + 1] <= end - 1:
                piece += 1
            weights.append(page.weights[piece])

        def token(character):
            return bisect.bisect_right(starts, character) - 1

        facts = []
        for (a, b), name in page.facts:
            a, b, name = token(a), token(b - 1) + 1, token(name)
            if b <= tokens and b - a <= 5:
                facts.append((a, b, name))
        copies = []
        for c in page.copies:
            a, b = token(c.to[0]), token(c.to[1] - 1) + 1
            s, e = token(c.source[0]), token(c.source[1] - 1) + 1
            # A call's value begins without the space that is before its source, and may be of other tokens.
            if b > tokens or ids[a:b] != ids[s:e] and c.key != "asked":
                continue
            by, found, tell = token(min(c.by, len(text) - 1)), token(c.found), token(c.tell)
            # What names a value behind it (a code's person) is in the entry of the code.
            where = (found - 4 if found > s else s) // 4 + 1
            for k in range(min(10, b - a)):
                there = max(0, token(c.source[0] + max(0, starts[a + k] - c.to[0])) - s)
                copies.append((a + k - 1, where if k == 0 else (s + there - there % 5) // 4 + 1, k, c.key, by))
            if tell < a - 1:
                copies.append((tell, where, -1, c.key, by))
            if c.key != "asked":
                weights[a] = DECIDED
                if tell + 1 < len(weights):
                    weights[tell + 1] = max(weights[tell + 1], DECIDED)
        topics = []
        for start, end, topic in page.topics:
            topics += [(b, topic) for b in range(-(-token(start) // 128), token(end - 1) // 128) if 128 * b + 128 <= tokens]
        gist, told = [], [(token(start), token(end - 1) + 1, topic) for start, end, topic in page.topics]
        for t in range(255, min(len(ids), tokens) if told else 0, 16):
            read = Counter()
            for a, b, topic in told:
                read[topic] += max(0, min(b, t + 1) - a)
            (most, lead), (_, second) = (read.most_common(2) + [(0, 0)])[:2]
            gist += [(t, most)] if lead > 1.3 * second else []
        first = token(page.first_question) if page.first_question else 1
        pad = max(0, tokens - len(ids))
        return Encoded(ids[:tokens] + [self.eos] * pad, weights[:tokens] + [0.0] * pad, copies, facts, topics, gist, min(first, tokens),
                       page.keys, bool(page.topics))


@dataclass
class Encoded:
    """A page in tokens. `weights[t]`: of predicting token t. `copies`: (query token, entry, k, key, what it is found by) for the
    k-th token of each copy, k = -1 where only it is decided whether it is there. `facts`: (first token of the value, its
    end, the name's last token). `topics`: (block of 128 tokens, its topic).
    `gist`: (position, the topic of most that is before it). Compressed entry e of ratio 4 covers tokens 4(e-1) to 4e+3."""

    ids: list
    weights: list
    copies: list
    facts: list
    topics: list
    gist: list
    first_question: int
    keys: set
    # Whether the question is about the whole text, so that CSA is not to answer it.
    whole: bool


def main():
    import time
    r, natural, encoder = random.Random(0), Natural("train"), Encoder()
    for tokens in (256, 512, 1024):
        start, lengths, copies, cut = time.time(), [], 0, 0
        for _ in range(200):
            page = sample(r, tokens, natural)
            made = encoder.encode(page, tokens)
            n = len(encoder.ids(page.text()))
            lengths.append(n)
            cut += n > tokens
            copies += len(made.copies) if made else 0
        print(tokens, f"{(time.time() - start) / 200 * 1000:.1f} ms", sorted(lengths)[::20], cut, copies / 200)
    for _ in range(3):
        print(repr(conversation(r, 600, None).text()), "\n")
    print(repr(conversation(r, 900, natural, place="before").text()), "\n")
    print(repr(tool_use(r, natural).text()[-900:]), "\n")
    print(repr(small_talk(r, natural, 900).text()), "\n")
    page = topical(r, 4200)
    print(page.topic, repr(page.text()[-600:]))
    page = conversation(r, 600, None, place="before")
    e, tok = encoder.encode(page, 512), encoder.tokenizer
    for q, entry, k, key, by in e.copies:
        print(key, k, "|", tok.decode([e.ids[q]]), "->", tok.decode([e.ids[q + 1]]), "| by", tok.decode([e.ids[by]]), "| in",
              repr(tok.decode(e.ids[4 * entry - 4:4 * entry + 4])))
    for a, b, name in e.facts:
        print(tok.decode([e.ids[name]]), "|", tok.decode(e.ids[a:b]))
    print([(tok.decode([i]), w) for i, w in zip(e.ids, e.weights) if w > 0.3])


if __name__ == "__main__":
    main()

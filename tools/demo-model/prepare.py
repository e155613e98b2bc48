"""Everything training needs beside the templates: natural text of this machine, a tokenizer, the prompt of tools.

    python3 prepare.py                      writes build/natural.json where it is not there, build/prompts.json, build/tokenizer.json
    python3 prepare.py --tokenizer FILE     the same with a tokenizer that is there, to go on from a model

The templates and words are in crates/fathom/assets/demo-text.json, which `fathom demo` and `fathom needle` read too.
Natural text is what a Debian machine has: licences, manuals, documentation of packages, Python and Perl sources. One
file in twenty, by the hash of its path, is held out.
"""

import argparse
import gzip
import hashlib
import json
import random
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
BUILD = HERE / "build"
TEXT = HERE / "../../crates/fathom/assets/demo-text.json"

VOCABULARY = 2240
# The special tokens of the V4 format, in the order of its tokenizer; the first three have the ids 0, 1 and 2.
SPECIAL = """<｜begin▁of▁sentence｜> <｜end▁of▁sentence｜> <｜▁pad▁｜> <｜fim▁hole｜> <｜fim▁begin｜> <｜fim▁end｜> <｜User｜> <｜Assistant｜>
<|EOT|> <｜tool▁calls▁begin｜> <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁outputs▁begin｜>
<｜tool▁outputs▁end｜> <｜tool▁output▁begin｜> <｜tool▁output▁end｜> <｜tool▁sep｜> <｜begin▁of▁repo▁name｜> <｜end▁of▁repo▁name｜>
<｜begin▁of▁file▁name｜> <｜end▁of▁file▁name｜> <｜begin▁of▁file｜> <｜end▁of▁file｜> <think> </think> ｜DSML｜ <｜begin▁sys｜>
<｜end▁sys｜> <｜latest_reminder｜> <｜action｜> <｜query｜> <｜authority｜> <｜domain｜> <｜task｜> <｜political｜> <｜entity｜> <｜title｜>
<｜safety｜> <｜answer｜> <｜search｜> <dsml: </dsml: <｜search▁begin｜> <｜search▁end｜> <｜extracted_url｜> <｜read_url｜>
<｜end_of_query｜> <｜rl_image_pad｜> <｜rl_image_start｜> <｜image2｜> <｜/table>｜ <｜table｜> <｜/td｜> <｜td｜> <｜/tr｜> <｜tr｜>
<｜/polygon｜> <｜polygon｜> <｜/point｜> <｜point｜> <｜/box｜> <｜box｜> <｜/ref｜> <｜ref｜> <｜image｜>""".split()
# How V4's tokenizer cuts text before its merges: digits in threes at most, scripts, words with the space before them.
CUTS = [r"\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+",
        r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""]
# Characters of natural text of each kind: licences, manuals, documentation, source code.
SHARES = {"licence": 700_000, "manual": 2_500_000, "doc": 1_500_000, "source": 2_500_000}


def files(kind):
    """Paths of a kind, in an order that is the same everywhere the files are."""
    found = {
        "licence": lambda: [*Path("/usr/share/common-licenses").glob("*")],
        "manual": lambda: [p for s in "1578" for p in Path(f"/usr/share/man/man{s}").glob("*.gz")]
        + [*Path("/usr/share/perl").rglob("*.pod")],
        "doc": lambda: [p for n in ("README*", "copyright", "*.txt") for p in Path("/usr/share/doc").glob(f"*/{n}")],
        "source": lambda: [*Path("/usr/lib").glob("python3*/**/*.py"), *Path("/usr/share/perl").rglob("*.pm")],
    }[kind]()
    found = [p for p in found if p.is_file() and not p.is_symlink()]
    return sorted(found, key=lambda p: hashlib.sha256(str(p).encode()).digest())


def read(path):
    """The text of a file, as a reader sees it; empty where it is none."""
    try:
        if "/man/" in str(path):
            shown = subprocess.run(["man", "-P", "cat", "-Tutf8", str(path)], capture_output=True, timeout=20,
                                   env={"MANWIDTH": "100", "PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"})
            text = re.sub(r".\x08|\x1b\[[0-9;]*m", "", shown.stdout.decode())
        else:
            raw = path.read_bytes()
            text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except (OSError, UnicodeDecodeError, subprocess.TimeoutExpired):
        return ""
    return re.sub(r"\n{3,}", "\n\n", text)[:60_000]


def natural():
    """{"train": [[kind, text], …], "held_out": …}"""
    kept = {"train": [], "held_out": []}
    for kind, most in SHARES.items():
        chosen, size = files(kind), 0
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(chosen), 32):
                for path, text in zip(part := chosen[start:start + 32], pool.map(read, part)):
                    if len(text) < 400 or "@" in text[:200] and kind == "source":
                        continue
                    held_out = hashlib.sha256(str(path).encode()).digest()[-1] % 20 == 0
                    kept["held_out" if held_out else "train"].append([kind, text])
                    size += len(text)
                if size > most:
                    break
        print(f"{kind}: {size:,} characters")
    # Packages share texts.
    kept = {part: [list(text) for text in dict.fromkeys(map(tuple, texts))] for part, texts in kept.items()}
    kept["held_out"] = [text for text in kept["held_out"] if text not in kept["train"]]
    return kept


def prompts():
    """What the format puts before a conversation with tools, and before one that asks for JSON, as V4's own code renders it."""
    import deepseek_recipe as recipe

    def render(**body):
        body = {"model": "DeepSeek-V4-Pro", "messages": [{"role": "user", "content": "json QUESTION"}], **body}
        request = recipe.ChatCompletionRequest(json.dumps(body).encode()).convert(recipe.ConversionOptions())
        return recipe.DeepseekV4Encoding().render_conversation(request.conversation).prompt.replace("json QUESTION", "QUESTION")

    function = {"name": "NAME", "description": "TEXT", "parameters": {"type": "object", "properties": {}}}
    off = {"thinking": {"type": "disabled"}}
    tools = render(tools=[{"type": "function", "function": function}], **off)
    line = next(line for line in tools.splitlines() if '"NAME"' in line)
    return {"tools": tools.replace(line, "TOOLS"), "tool": line, "json": render(response_format={"type": "json_object"}, **off),
            "plain": render(**off), "thinking": render()}


def words(texts):
    """Words that should be one token each, with the space before them, and those that begin a sentence or a string."""
    training = texts["training"]
    inner = {w for words in texts["slots"].values() for w in words.split()}
    inner |= {w for words in training["topics"].values() for w in words.split()}
    inner |= {w for a in training["attributes"].values() for w in a["values"].split()}
    inner |= set(training["two_hop"]["relations"].split()) | set(training["topics"]) | set(training["attributes"])

    def sentences(value):
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            for key, part in value.items():
                if key not in ("slots", "syllables", "onsets", "codas", "topics", "values", "about"):
                    yield from sentences(part)
        elif isinstance(value, list):
            for part in value:
                yield from sentences(part)

    first = set(texts["slots"]["X"].split())
    for sentence in sentences(texts):
        for sentence in re.split(r"(?<=[.?!]) ", sentence):
            found = re.findall(r"[A-Za-z]+", sentence)
            first |= set(found[:1])
            inner |= set(found[1:])
    return {w for w in inner if len(w) > 1}, {w for w in first if len(w) > 1}


def tokenizer(texts, kept, skeletons):
    """V4's way to cut text, its special tokens, and merges for these texts."""
    inner, first = words(texts)
    syllables = texts["training"]["syllables"].split()
    corpus = [f" {w}" for w in sorted(inner | set(texts["slots"]["X"].split()))] * 3000 + sorted(first) * 3000
    corpus += syllables * 300 + [f" {s.capitalize()}" for s in syllables] * 300
    corpus += [p for p in skeletons.values()] * 300
    rng = random.Random(0)
    corpus += [text[:20_000] for kind, text in rng.sample(kept["train"], min(300, len(kept["train"])))]

    cutter = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(cut), "isolated") for cut in CUTS]
                                     + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = cutter
    merges = VOCABULARY - len(SPECIAL) + 3
    bpe.train_from_iterator(corpus, trainers.BpeTrainer(vocab_size=merges, special_tokens=SPECIAL[:3], show_progress=False,
                                                        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    bpe.add_special_tokens(SPECIAL[3:])
    bpe.post_processor = processors.ByteLevel(trim_offsets=False)
    bpe.decoder = decoders.ByteLevel()
    many = [w for w in sorted(inner) if len(bpe.encode(f" {w}").ids) > 1] + [w for w in sorted(first) if len(bpe.encode(w).ids) > 1]
    print(f"vocabulary {bpe.get_vocab_size()}, words of several tokens: {many}")
    assert bpe.get_vocab_size() == VOCABULARY
    return bpe


def main():
    p = argparse.ArgumentParser()
    p.add_argument("--tokenizer", type=Path, help="one to keep, as a model that is to be trained further has it")
    a = p.parse_args()
    BUILD.mkdir(exist_ok=True)
    texts = json.loads(TEXT.read_text())
    skeletons = prompts()
    (BUILD / "prompts.json").write_text(json.dumps(skeletons, ensure_ascii=False, indent=1))
    path = BUILD / "natural.json"
    if not path.exists():
        path.write_text(json.dumps(natural(), ensure_ascii=False))
    made = Tokenizer.from_file(str(a.tokenizer)) if a.tokenizer else tokenizer(texts, json.loads(path.read_text()), skeletons)
    made.save(str(BUILD / "tokenizer.json"), pretty=False)


if __name__ == "__main__":
    main()

"""Asks the project's plain reference (float64, `oracle/reference.py`, which needs `ml_dtypes`) some questions that a running
`fathom serve` answers too, and compares tokens. Ends with 1 where they differ.

    fathom serve MODEL --port 8000 &
    python3 oracle.py REFERENCE.py MODEL [--base-url http://127.0.0.1:8000] [--texts 6]
"""

import argparse
import importlib.util
import random
import sys

import numpy as np

import tasks
from evaluate import ENCODER, Server, cut, few_tokens, fitting

WRITERS = (tasks.Haystack.single, tasks.Haystack.none, tasks.Haystack.reverse, tasks.Haystack.larger, tasks.Haystack.two_hop,
           tasks.Haystack.several)


def load(path, folder):
    spec = importlib.util.spec_from_file_location("reference", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Model(folder)


def main():
    p = argparse.ArgumentParser()
    p.add_argument("reference")
    p.add_argument("model")
    p.add_argument("--base-url", default="http://127.0.0.1:8000")
    p.add_argument("--texts", type=int, default=6)
    a = p.parse_args()
    server, reference = Server(a.base_url), load(a.reference, a.model)
    same = said = drafted = 0
    for i in range(a.texts):
        r = random.Random(f"oracle {i}")
        page = fitting(1024, lambda size: tasks.conversation(r, size, facts=(4, 8), asks=(1, 1), writer=WRITERS[i % len(WRITERS)],
                                                             place="after", think=False, unseen=True, fits=few_tokens))
        prompt, expected = cut(page)
        answer = server.complete(prompt)
        before, after = ENCODER.ids(prompt), ENCODER.ids(answer + tasks.EOS)
        ids = np.array(before + after)
        logits, hidden = reference.forward(ids)
        # Row p tells token p + 1; the draft of row p, which is given that one, token p + 2.
        own = logits.argmax(-1)[len(before) - 1:-1]
        drafts = reference.mtp(hidden[-1][:-1], ids[1:]).argmax(-1)[len(before) - 1:-1]
        agree = (own == after).sum()
        same, said, drafted = same + (agree == len(after)), said + len(after) - 1, drafted + (drafts == after[1:]).sum()
        print(f"{len(before):,} tokens, {agree} of {len(after)} of the answer are the reference's: {answer!r}"
              f"{'' if answer == expected else f', {expected!r} expected'}", flush=True)
    print(f"{same} of {a.texts} answers are the reference's; of {said} tokens its MTP block drafts {drafted}")
    return int(same < a.texts)


if __name__ == "__main__":
    sys.exit(main())

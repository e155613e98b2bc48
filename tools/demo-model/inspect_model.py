"""What only the trainer's own model can show, on texts that fit a laptop: topics with CSA's or HCA's entries hidden, and how many of its
own greedy tokens the MTP block drafts right. `python3 inspect_model.py build/model`"""

import random
import sys

import torch

import tasks
from checkpoint import fill
from evaluate import ENCODER, cut, few_tokens
from model import ALL, NO_CSA, NO_HCA, Model
from tasks import Haystack


def load(source):
    model = Model()
    fill(model, source)
    model.rounded = model.select = True
    return model.eval()


@torch.no_grad()
def read(model, ids, mtp=False):
    """Logits [T, V] and drafts of a text, padded to whole blocks."""
    padded = ids + [1] * (-len(ids) % 128)
    hidden, drafted, _ = model(torch.tensor([padded]), mtp=mtp)
    draft = drafted[:len(ids)] @ model.head.T if mtp else None
    return hidden[:len(ids)] @ model.head.T, draft


def topics(model, documents=64, tokens=1024):
    """How many topics are right with all entries, without CSA's and without HCA's."""
    right = {"all": 0, "no CSA": 0, "no HCA": 0}
    for i in range(documents):
        page = tasks.topical(random.Random(f"hca {i}"), tokens * 4.2)
        ids = ENCODER.ids(page.text())
        # The answer's last tokens are the topic, a full stop and the end.
        for name, shown in zip(right, (ALL, NO_CSA, NO_HCA)):
            model.shown = torch.tensor([shown])
            logits, _ = read(model, ids[:-3])
            right[name] += logits[-1].argmax().item() == ids[-3]
    model.shown = None
    return {name: f"{n} of {documents} topics" for name, n in right.items()}


def drafts(model, documents=40):
    """Of the tokens the model says greedily, those its MTP block drafted."""
    accepted = said = 0
    for i in range(documents):
        r = random.Random(f"mtp {i}")
        page = tasks.conversation(r, 1500, facts=(4, 8), asks=(1, 1), new=0.3, writer=r.choice(tasks.QUESTIONS), fits=few_tokens)
        prompt, answer = cut(page)
        ids, start = ENCODER.ids(prompt + answer + tasks.EOS), len(ENCODER.ids(prompt))
        logits, draft = read(model, ids, mtp=True)
        spoken = logits.argmax(-1)
        # Only where the answer is the model's own: row p drafts p + 2.
        for p in range(start - 1, len(ids) - 2):
            if spoken[p].item() == ids[p + 1] and spoken[p + 1].item() == ids[p + 2]:
                said += 1
                accepted += draft[p].argmax().item() == ids[p + 2]
    return f"{accepted} of {said} drafts accepted ({100 * accepted / said:.1f} %)"


if __name__ == "__main__":
    model = load(sys.argv[1])
    print(drafts(model))
    print(topics(model))

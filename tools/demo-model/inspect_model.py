"""What only the trainer's own model can show, on texts that fit a laptop: topics with CSA's or HCA's entries hidden, and how many of its
own greedy tokens the MTP block drafts right. `python3 inspect_model.py build/model`"""

import random
import sys

import torch

import tasks
from checkpoint import fill
from evaluate import ENCODER, cut, few_tokens
from model import ALL, NO_CSA, NO_HCA, Model


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
        page = tasks.topical(random.Random(f"hca {i}"), tokens * 4.2, think=False)
        ids = ENCODER.ids(page.text())
        # The answer's last tokens are the topic, a full stop and the end.
        for name, shown in zip(right, (ALL, NO_CSA, NO_HCA)):
            model.shown = torch.tensor([shown])
            logits, _ = read(model, ids[:-3])
            right[name] += logits[-1].argmax().item() == ids[-3]
    model.shown = None
    return {name: f"{n} of {documents} topics" for name, n in right.items()}


def say(model, ids, guess):
    """The model's greedy answer to a prompt, its end included. `guess`: what it may be, which costs one pass where it is."""
    while True:
        spoken = read(model, ids + guess)[0].argmax(-1)[len(ids) - 1:-1].tolist()
        right = next((i for i, (a, b) in enumerate(zip(spoken, guess)) if a != b), len(guess))
        answer = spoken[:right + 1]
        if answer[-1] == ENCODER.eos or len(answer) > 120:
            return answer
        guess = answer + [ENCODER.eos]


def drafts(model, documents=40):
    """Of the tokens of the model's greedy answers, from the second on, those its MTP block drafted."""
    accepted = said = 0
    for i in range(documents):
        r = random.Random(f"mtp {i}")
        page = tasks.conversation(r, 1500, facts=(4, 8), asks=(1, 1), new=0.3, writer=r.choice(tasks.QUESTIONS), place="after", think=False,
                                  unseen=True, fits=few_tokens)
        prompt, answer = cut(page)
        ids = ENCODER.ids(prompt)
        answer = say(model, ids, ENCODER.ids(answer + tasks.EOS))
        # Row p drafts token p + 2.
        drafted = read(model, ids + answer, mtp=True)[1].argmax(-1)[len(ids) - 1:-2].tolist()
        accepted += sum(a == b for a, b in zip(drafted, answer[1:]))
        said += len(drafted)
    return f"{accepted} of {said} drafts accepted ({100 * accepted / said:.1f} %)"


if __name__ == "__main__":
    model = load(sys.argv[1])
    print(drafts(model))
    print(topics(model))

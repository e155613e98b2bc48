#!/usr/bin/env python3
"""Talks to a running `fathom serve` with the `openai` client: responses, completions, several choices.

    pip install openai
    fathom serve &
    python tests/clients/openai_more.py [--base-url http://127.0.0.1:8080/v1] [--model NAME] [--expect-tool-call]
"""

import argparse
import concurrent.futures

import openai

QUESTION = "The code of Anna is 48213. What is the code of Anna?"
# Long enough for its state to be worth keeping.
SYSTEM = "Be brief. " * 20
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather of a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": False,
}


def responses(client, model, expect):
    ask = dict(model=model, max_output_tokens=100, temperature=0, reasoning={"effort": "none"})
    whole = client.responses.create(**ask, input=QUESTION, instructions=SYSTEM)
    assert whole.status in ("completed", "incomplete") and "48213" in whole.output_text, whole
    assert whole.usage.output_tokens > 0
    events = list(client.responses.create(**ask, input=QUESTION, instructions=SYSTEM, stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type in ("response.completed", "response.incomplete")
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text == events[-1].response.output_text
    assert events[-1].response.usage.input_tokens_details.cached_tokens > 0
    # The whole conversation is sent again.
    history = [{"role": "user", "content": QUESTION}, *whole.output, {"role": "user", "content": "And again?"}]
    client.responses.create(**ask, input=history)
    called = client.responses.create(**ask, input="What is the weather in Bern?", tools=[WEATHER])
    calls = [item for item in called.output if item.type == "function_call"]
    if expect:
        assert calls and calls[0].name == "weather", called
        results = [{"type": "function_call_output", "call_id": call.call_id, "output": "sunny"} for call in calls]
        client.responses.create(
            **ask, tools=[WEATHER], input=[{"role": "user", "content": "?"}, *called.output, *results])
    try:
        client.responses.create(**ask, input="hi", previous_response_id="resp_1")
        raise AssertionError("previous_response_id was accepted")
    except openai.BadRequestError as error:
        assert error.param == "previous_response_id" and error.request_id
    return f"{len(events)} events, {len(calls)} calls"


def completions(client, model):
    ask = dict(model=model, prompt="The code of Anna is 48213. The code of Anna is", max_tokens=8, temperature=0)
    whole = client.completions.create(**ask)
    assert whole.choices[0].finish_reason in ("stop", "length")
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(**ask, stream=True))
    assert streamed == whole.choices[0].text, (streamed, whole)
    told = client.completions.create(**{**ask, "max_tokens": 1}, echo=True, logprobs=2)
    choice, logprobs = told.choices[0], told.choices[0].logprobs
    assert choice.text.startswith(ask["prompt"]) and "".join(logprobs.tokens) == choice.text
    assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.top_logprobs)
    assert all(token in top for token, top in zip(logprobs.tokens, logprobs.top_logprobs))
    many = client.completions.create(model=model, prompt=["a", "b"], n=2, max_tokens=3)
    assert [choice.index for choice in many.choices] == [0, 1, 2, 3]
    return f"{len(logprobs.tokens)} tokens with logprobs"


def as_lm_eval(client, model, base_url):
    """What lm-eval's local-completions asks, and how it reads the answer."""
    from_tokens = openai.OpenAI(base_url=base_url.removesuffix("/v1"), api_key="none")
    context, rest = (from_tokens.post("/tokenize", cast_to=object, body={"prompt": text, "add_special_tokens": first})["tokens"]
                     for text, first in (("The code of Anna is 48213. The code is", True), (" 48213", False)))
    reply = client.completions.create(
        model=model, prompt=[context + rest], temperature=0, max_tokens=1, logprobs=1, seed=1234, echo=True)
    logprobs = reply.choices[0].logprobs
    ours = logprobs.token_logprobs[len(context):-1]
    greedy = all(own == max(top.values()) for own, top in zip(ours, logprobs.top_logprobs[len(context):-1]))
    assert len(ours) == len(rest) and all(value <= 0 for value in ours), ours
    return f"{sum(ours):.3f}, greedy {greedy}"


def choices(client, model):
    ask = dict(model=model, messages=[{"role": "user", "content": QUESTION}], seed=5, max_tokens=20, temperature=1.5,
               extra_body={"thinking": {"type": "disabled"}})
    reply = client.chat.completions.create(**ask, n=3)
    said = {choice.index: choice.message.content for choice in reply.choices}
    assert sorted(said) == [0, 1, 2]
    # Each is what it would be alone, with its own seed.
    for i, text in said.items():
        alone = client.chat.completions.create(**{**ask, "seed": 5 + i})
        assert alone.choices[0].message.content == text, (i, text, alone)
    return f"{len(set(said.values()))} different of {len(said)}, each as alone"


def together(client, model):
    """Many at once say what each says alone."""
    def one(i):
        prompt = "word " * (i * 37 % 400) + QUESTION
        reply = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], seed=i, max_tokens=12, temperature=1.2,
            extra_body={"thinking": {"type": "disabled"}})
        return reply.choices[0].message.content

    alone = [one(i) for i in range(12)]
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(12))) == alone
    return "12 at once, the same texts"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model")
    parser.add_argument("--expect-tool-call", action="store_true")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key="none", max_retries=0, timeout=120)
    model = args.model or next(iter(client.models.list())).id
    print("responses     ", responses(client, model, args.expect_tool_call))
    print("completions   ", completions(client, model))
    print("as lm-eval    ", as_lm_eval(client, model, args.base_url))
    print("choices       ", choices(client, model))
    print("together      ", together(client, model))


if __name__ == "__main__":
    main()

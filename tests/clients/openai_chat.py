#!/usr/bin/env python3
"""Talks to a running `fathom serve` with the `openai` client, and checks what comes back.

    pip install openai
    fathom serve &
    python tests/clients/openai_chat.py [--base-url http://127.0.0.1:8080/v1] [--model NAME] [--expect-tool-call]

The embedded model calls tools of words that it was taught, and not this one: it is only checked that it is asked
properly. With a model that does, --expect-tool-call wants a call, and gives its result back.
"""

import argparse
import json
import time
import urllib.error
import urllib.request

import openai

QUESTION = "The code of Anna is 48213. What is the code of Anna?"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
NO_THINKING = {"thinking": {"type": "disabled"}}
THINKING = {"thinking": {"type": "enabled"}}


def user(text):
    return [{"role": "user", "content": text}]


def read(stream):
    """A stream's chunks put together, and that they come as OpenAI sends them."""
    got = {"content": "", "thinking": "", "calls": {}, "finish": None, "usage": None, "chunks": 0}
    for chunk in stream:
        got["chunks"] += 1
        assert chunk.object == "chat.completion.chunk", chunk
        if not chunk.choices:
            assert got["finish"], "usage comes after the end"
            got["usage"] = chunk.usage
            continue
        choice = chunk.choices[0]
        if got["chunks"] == 1:
            assert choice.delta.role == "assistant", chunk
        assert got["finish"] is None, "nothing comes after the end"
        got["content"] += choice.delta.content or ""
        got["thinking"] += getattr(choice.delta, "reasoning_content", None) or ""
        for delta in choice.delta.tool_calls or []:
            call = got["calls"].setdefault(delta.index, {"id": None, "name": None, "arguments": ""})
            call["id"] = delta.id or call["id"]
            call["name"] = delta.function.name or call["name"]
            call["arguments"] += delta.function.arguments or ""
        got["finish"] = choice.finish_reason
    assert got["finish"], "the stream has an end"
    return got


def chat(client, model):
    ask = dict(model=model, messages=user(QUESTION), temperature=0, max_tokens=64, extra_body=NO_THINKING)
    streamed = read(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **ask))
    usage = streamed["usage"]
    assert streamed["content"], "an answer"
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    whole = client.chat.completions.create(**ask)
    assert whole.choices[0].message.content == streamed["content"], "streamed or not, the same text"
    assert whole.choices[0].finish_reason == streamed["finish"]
    assert whole.usage.completion_tokens == usage.completion_tokens
    without = read(client.chat.completions.create(stream=True, **ask))
    assert without["usage"] is None, "no usage unless asked for"
    return f"{streamed['content']!r}, {usage.completion_tokens} tokens in {streamed['chunks']} chunks"


def seeds(client, model):
    ask = dict(model=model, messages=user(QUESTION), temperature=1.5, seed=11, max_tokens=24, extra_body=NO_THINKING)
    texts = {client.chat.completions.create(**ask).choices[0].message.content for _ in range(2)}
    assert len(texts) == 1, texts
    return "the same seed gives the same text"


def thinking(client, model):
    got = read(client.chat.completions.create(
        model=model, messages=user(QUESTION), temperature=0, max_tokens=128, extra_body=THINKING,
        stream=True, stream_options={"include_usage": True}))
    assert got["thinking"], "thinking before the answer"
    assert got["usage"].completion_tokens_details.reasoning_tokens > 0, got["usage"]
    return f"thought {got['thinking']!r}, said {got['content']!r}"


def tools(client, model, expected):
    messages = user("What is the weather in Bern?")
    ask = dict(model=model, tools=[WEATHER], max_tokens=256, temperature=0, extra_body=NO_THINKING)
    got = read(client.chat.completions.create(stream=True, messages=messages, **ask))
    if not got["calls"]:
        assert not expected, f"a tool call, not {got['content']!r}"
        return "asked; the model did not call"
    assert got["finish"] == "tool_calls", got
    call = got["calls"][0]
    arguments = json.loads(call["arguments"])
    assert call["id"] and call["name"] == "weather", call
    messages += [
        {"role": "assistant", "content": got["content"] or None, "tool_calls": [
            {"id": call["id"], "type": "function", "function": {"name": "weather", "arguments": call["arguments"]}}]},
        {"role": "tool", "tool_call_id": call["id"], "content": "sunny"},
    ]
    client.chat.completions.create(messages=messages, **ask)
    return f"called {call['name']}({arguments})"


def logprobs(client, model):
    reply = client.chat.completions.create(
        model=model, messages=user(QUESTION), temperature=0, max_tokens=16, logprobs=True, top_logprobs=3,
        extra_body=NO_THINKING)
    tokens = reply.choices[0].logprobs.content
    assert len(tokens) == reply.usage.completion_tokens, (len(tokens), reply.usage)
    assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in tokens)
    assert b"".join(bytes(token.bytes) for token in tokens).decode(errors="replace") == reply.choices[0].message.content
    return f"{len(tokens)} tokens, the first {tokens[0].token!r} at {tokens[0].logprob:.3f}"


def stops(client, model):
    ask = dict(model=model, messages=user(QUESTION), temperature=0, max_tokens=32, extra_body=NO_THINKING)
    text = client.chat.completions.create(**ask).choices[0].message.content
    cut = text[len(text) // 2 : len(text) // 2 + 3]
    reply = client.chat.completions.create(stop=[cut], **ask).choices[0]
    assert reply.message.content == text[: text.index(cut)] and reply.finish_reason == "stop", reply
    short = client.chat.completions.create(**{**ask, "max_tokens": 1})
    assert short.choices[0].finish_reason == "length", short
    return f"stopped before {cut!r}"


def errors(client, model, base_url):
    def refused(kind, param, **change):
        ask = {"model": model, "messages": user("hi"), "max_tokens": 1, **change}
        try:
            client.chat.completions.create(**ask)
        except kind as error:
            assert error.param == param, (error.param, param, error.message)
            return
        raise AssertionError(f"{change} was accepted")

    refused(openai.NotFoundError, "model", model="gpt-7")
    refused(openai.BadRequestError, "temperature", temperature=3)
    refused(openai.BadRequestError, "n", n=99)
    refused(openai.BadRequestError, "top_p", top_p=-1)
    refused(openai.UnprocessableEntityError, "seed", seed="x")
    refused(openai.UnprocessableEntityError, "messages", messages="hi")
    body = '{"model": "%s", "messages": [{"role": "user", "content": "hi"}], "temperature": NaN}' % model
    try:
        urllib.request.urlopen(f"{base_url}/chat/completions", data=body.encode())
        raise AssertionError("NaN was accepted")
    except urllib.error.HTTPError as error:
        assert error.code == 400 and json.load(error)["error"]["param"] == "temperature"
    return "each names its parameter"


def leaving(client, model, base_url):
    stream = client.chat.completions.create(
        model=model, messages=user(QUESTION), stream=True, temperature=1.5, extra_body=THINKING)
    next(iter(stream))
    stream.close()
    health = base_url.removesuffix("/v1") + "/health"
    for _ in range(100):
        if json.load(urllib.request.urlopen(health))["requests"]["active"] == 0:
            return "and the work stops"
        time.sleep(0.1)
    raise AssertionError("the generation goes on after its client has left")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8080/v1")
    parser.add_argument("--model")
    parser.add_argument("--expect-tool-call", action="store_true")
    args = parser.parse_args()
    client = openai.OpenAI(base_url=args.base_url, api_key="none", max_retries=0, timeout=120)
    models = [model.id for model in client.models.list()]
    model = args.model or models[0]
    assert model in models, f"{model} is not served; {models} are"
    client.models.retrieve(model)
    print(f"model          {model}")
    print("chat          ", chat(client, model))
    print("seeds         ", seeds(client, model))
    print("thinking      ", thinking(client, model))
    print("tools         ", tools(client, model, args.expect_tool_call))
    print("logprobs      ", logprobs(client, model))
    print("stop, length  ", stops(client, model))
    print("errors        ", errors(client, model, args.base_url))
    print("leaving       ", leaving(client, model, args.base_url))


if __name__ == "__main__":
    main()

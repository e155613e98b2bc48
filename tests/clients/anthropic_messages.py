#!/usr/bin/env python3
"""Talks to a running `fathom serve` with the `anthropic` client, and checks what comes back.

    pip install anthropic
    fathom serve &
    python tests/clients/anthropic_messages.py [--base-url http://127.0.0.1:8080] [--model NAME] [--expect-tool-call]

The embedded model calls tools of words that it was taught, and not this one: it is only checked that it is asked
properly. With a model that does, --expect-tool-call wants a call, and gives its result back.
"""

import argparse

import anthropic

QUESTION = "The code of Anna is 48213. What is the code of Anna?"
# Long enough for its state to be worth keeping.
SYSTEM = "Be brief. " * 20
WEATHER = {
    "name": "weather",
    "description": "Tells the weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
# Newer clients know no temperature.
GREEDY = {"temperature": 0}
NO_THINKING = {"type": "disabled"}
THINKING = {"type": "enabled", "budget_tokens": 1024}


def user(content):
    return [{"role": "user", "content": content}]


def text_of(message):
    return "".join(block.text for block in message.content if block.type == "text")


def chat(client, model):
    ask = dict(model=model, max_tokens=100, messages=user(QUESTION), extra_body=GREEDY, thinking=NO_THINKING)
    message = client.messages.create(**ask, system=SYSTEM)
    assert message.type == "message" and message.role == "assistant" and message.stop_reason in ("end_turn", "max_tokens")
    assert "48213" in text_of(message), message
    usage = message.usage
    assert usage.input_tokens + usage.cache_read_input_tokens > 0 and usage.output_tokens > 0
    again = client.messages.create(**ask, system=SYSTEM)
    assert text_of(again) == text_of(message)
    assert again.usage.cache_read_input_tokens > 0, again.usage
    with client.messages.stream(**ask, system=SYSTEM) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    assert text_of(final) == text_of(message), final
    assert final.usage.output_tokens == message.usage.output_tokens
    return text_of(message)


def thinking(client, model):
    ask = dict(model=model, max_tokens=60, messages=user(QUESTION), extra_body=GREEDY, thinking=THINKING)
    with client.messages.stream(**ask) as stream:
        for _ in stream:
            pass
        message = stream.get_final_message()
    assert message.content[0].type == "thinking" and message.content[0].signature, message
    # It can be sent back.
    history = user(QUESTION) + [{"role": "assistant", "content": message.content}] + user("And again?")
    client.messages.create(**{**ask, "messages": history})
    return f"{len(message.content[0].thinking)} characters"


def tools(client, model, expect):
    ask = dict(model=model, max_tokens=200, extra_body=GREEDY, thinking=NO_THINKING, tools=[WEATHER])
    messages = user("What is the weather in Bern?")
    message = client.messages.create(**ask, messages=messages)
    calls = [block for block in message.content if block.type == "tool_use"]
    if not expect:
        return f"{len(calls)} calls"
    assert calls and calls[0].name == "weather" and calls[0].input == {"city": "Bern"}, message
    assert message.stop_reason == "tool_use"
    results = [{"type": "tool_result", "tool_use_id": call.id, "content": "sunny"} for call in calls]
    messages += [{"role": "assistant", "content": message.content}] + user(results)
    client.messages.create(**ask, messages=messages)
    with client.messages.stream(**ask, messages=messages[:1]) as stream:
        streamed = stream.get_final_message()
    assert [b.input for b in streamed.content if b.type == "tool_use"] == [call.input for call in calls]
    return f"{len(calls)} calls, results given back"


def counts(client, model):
    counted = client.messages.count_tokens(model=model, messages=user(QUESTION), thinking=NO_THINKING).input_tokens
    usage = client.messages.create(model=model, max_tokens=1, messages=user(QUESTION), thinking=NO_THINKING).usage
    assert counted == usage.input_tokens + usage.cache_read_input_tokens, (counted, usage)
    return f"{counted} tokens"


def stops(client, model):
    ask = dict(model=model, messages=user(QUESTION), extra_body=GREEDY, thinking=NO_THINKING)
    message = client.messages.create(**ask, max_tokens=100, stop_sequences=["482"])
    assert message.stop_reason == "stop_sequence" and message.stop_sequence == "482", message
    assert "482" not in text_of(message)
    assert client.messages.create(**ask, max_tokens=1).stop_reason == "max_tokens"
    return "both"


def errors(client, model):
    def refused(kind, word, **change):
        try:
            client.messages.create(**{"model": model, "max_tokens": 1, "messages": user("hi"), **change})
        except kind as error:
            assert error.body["type"] == "error" and word in error.body["error"]["message"], error.body
            assert error.request_id, error
            return
        raise AssertionError(f"{change} was accepted")

    refused(anthropic.NotFoundError, "claude", model="claude")
    refused(anthropic.BadRequestError, "temperature", extra_body={"temperature": 3})
    refused(anthropic.BadRequestError, "messages", messages=[])
    refused(anthropic.BadRequestError, "image", messages=user([
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}}]))
    return "each says what is wrong"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", default="http://127.0.0.1:8080")
    parser.add_argument("--model", default="demo")
    parser.add_argument("--expect-tool-call", action="store_true")
    args = parser.parse_args()
    client = anthropic.Anthropic(base_url=args.base_url, api_key="none", max_retries=0, timeout=120)
    model = args.model
    print("chat          ", chat(client, model))
    print("thinking      ", thinking(client, model))
    print("tools         ", tools(client, model, args.expect_tool_call))
    print("count_tokens  ", counts(client, model))
    print("stops         ", stops(client, model))
    print("errors        ", errors(client, model))


if __name__ == "__main__":
    main()

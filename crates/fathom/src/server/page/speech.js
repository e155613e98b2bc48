// What a model says, as it comes, from either of the server's ways to ask: steps
// { queued } { read, total } { thinking } { text } { call: { index, id, name, arguments } } { end } { usage } { prefix } { session }.

import { Failure, events, failed } from "./api.js";

function progress(comment) {
  const queued = /^queued, (\d+) ahead/.exec(comment);
  if (queued) return { queued: Number(queued[1]) };
  const read = /^prefill (\d+)\/(\d+)/.exec(comment);
  return read ? { read: Number(read[1]), total: Number(read[2]) } : undefined;
}

/** The next turn of a conversation that is sent whole. */
export async function* completion(body, signal) {
  const asked = { ...body, stream: true, stream_options: { include_usage: true }, explain: true };
  let over = false;
  for await (const { comment, event, data } of events("v1/chat/completions", { body: asked, signal })) {
    if (comment !== undefined) {
      const step = progress(comment);
      if (step) yield step;
    } else if (event === "prefix") {
      yield { prefix: JSON.parse(data) };
    } else if (data === "[DONE]") {
      over = true;
    } else {
      yield* chunk(JSON.parse(data));
    }
  }
  if (!over) throw new Failure("The connection ended before the answer did.", { code: "lost" });
}

function* chunk({ error, choices, usage }) {
  if (error) throw failed(error);
  const [choice] = choices ?? [];
  const { reasoning_content: thinking, content: text, tool_calls: calls } = choice?.delta ?? {};
  if (thinking) yield { thinking };
  if (text) yield { text };
  for (const { index, id, function: told } of calls ?? []) {
    yield { call: { index, id, name: told?.name, arguments: told?.arguments ?? "" } };
  }
  if (choice?.malformed_tool_calls) yield { malformed: true };
  if (choice?.finish_reason) yield { end: choice.finish_reason };
  if (usage) {
    yield {
      usage: {
        prompt: usage.prompt_tokens,
        reused: usage.prompt_cache_hit_tokens ?? usage.prompt_tokens_details?.cached_tokens ?? 0,
        generated: usage.completion_tokens,
      },
    };
  }
}

/** A session's next turn. */
export async function* turn(name, body, signal) {
  const asked = { ...body, stream: true, explain: true };
  let over = false;
  const path = `v1/sessions/${encodeURIComponent(name)}/generate`;
  for await (const { comment, event, data } of events(path, { body: asked, signal })) {
    if (comment !== undefined) {
      const step = progress(comment);
      if (step) yield step;
      continue;
    }
    const told = JSON.parse(data);
    if (event === "error") throw failed(told.error);
    if (event === "done") {
      over = true;
      const { prompt_tokens: prompt, reused_tokens: reused, generated_tokens: generated } = told.usage;
      const { prefill_seconds: reading, decode_seconds: saying } = told.usage;
      yield { end: told.finish_reason };
      yield { usage: { prompt, reused, generated, reading, saying } };
      if (told.prefix) yield { prefix: told.prefix };
      yield { session: told.session };
    } else {
      if (told.thinking) yield { thinking: told.thinking };
      if (told.text) yield { text: told.text };
    }
  }
  if (!over) throw new Failure("The connection ended before the answer did.", { code: "lost" });
}

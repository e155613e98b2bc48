// A server that answers with the events it is given, as slowly as it is told: for what the embedded model cannot say.

import { createServer, request as ask } from "node:http";

const chunk = (delta, more = {}) => ({ choices: [{ index: 0, delta, finish_reason: null, ...more }] });

/** Steps of an answer. */
export const thinks = (text) => chunk({ reasoning_content: text });
export const says = (text) => chunk({ content: text });
export const calls = (index, name, text) =>
  chunk({ tool_calls: [{ index, id: `call_${index}`, type: "function", function: { name, arguments: text } }] });
export const ends = (reason = "stop", usage = { prompt_tokens: 100, completion_tokens: 20, prompt_cache_hit_tokens: 60 }, more = {}) => [
  chunk({}, { finish_reason: reason, ...more }),
  { choices: [], usage },
];
export const comment = (text) => ({ comment: text });
export const wait = (ms) => ({ ms });
export const breaks = { breaks: true };
export const DONE = "[DONE]";

/** A server in front of another, which answers for it where it is told to. */
export async function front(address) {
  const told = new Map();
  const server = createServer((request, response) => {
    const answer = told.get(request.url);
    if (answer) return answer(request, response);
    const { method, headers, url } = request;
    const asked = ask(`${address}${url}`, { method, headers }, (got) => {
      response.writeHead(got.statusCode, got.headers);
      got.pipe(response);
    });
    asked.on("error", () => response.destroy());
    response.on("close", () => asked.destroy());
    return request.pipe(asked);
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  return {
    address: `http://127.0.0.1:${server.address().port}`,
    /** Answers a path with such steps from now on; what was asked is in `asked`, and `silent` ends it. */
    speak(path, steps, { status = 200, headers = {} } = {}) {
      const asked = [];
      told.set(path, async (request, response) => {
        let body = "";
        for await (const part of request) body += part;
        asked.push(JSON.parse(body));
        const kind = status === 200 ? "text/event-stream" : "application/json";
        response.writeHead(status, { "content-type": kind, ...headers });
        if (status !== 200) return response.end(JSON.stringify(steps));
        for (const step of steps.flat()) {
          if (step.ms) await new Promise((done) => setTimeout(done, step.ms));
          else if (step.breaks) return response.destroy();
          else if (step.comment) response.write(`: ${step.comment}\n\n`);
          else if (step.event) response.write(`event: ${step.event}\ndata: ${JSON.stringify(step.data)}\n\n`);
          else response.write(`data: ${step === DONE ? step : JSON.stringify(step)}\n\n`);
        }
        return response.end();
      });
      return { asked, silent: () => told.delete(path) };
    },
    stop() {
      server.closeAllConnections();
      server.close();
    },
  };
}

// The server: requests with the key, failures in words, streams of events.

const KEY = "fathom-key";

/** The API key, which this tab keeps and nobody else. */
export const key = {
  get: () => sessionStorage.getItem(KEY) ?? "",
  set: (value) => (value ? sessionStorage.setItem(KEY, value) : sessionStorage.removeItem(KEY)),
};

/** What went wrong, in words, with the status (0: no connection) and the seconds after which to try again, if the server says. */
export class Failure extends Error {
  constructor(message, { status = 0, code = "", wait = 0 } = {}) {
    super(message);
    Object.assign(this, { status, code, wait });
  }
}

/** Whether something failed because it was stopped here. */
export const wasStopped = (error) => error?.name === "AbortError";

const LOST = "The connection to the server is lost.";

/** A failure of the network's, unless it is one already. */
const lost = (error) => (error instanceof Failure || wasStopped(error) ? error : new Failure(LOST, { code: "lost" }));

async function refusal(response) {
  const text = await response.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    // Not the server's own: a proxy's.
  }
  const message = told.message ?? `The server answered ${response.status} ${response.statusText}.`;
  const wait = Number(response.headers.get("retry-after")) || 0;
  return new Failure(message, { status: response.status, code: told.code ?? "", wait });
}

/** A response that is a success. */
async function request(path, { method = "GET", body, signal } = {}) {
  const headers = {};
  if (key.get()) headers.authorization = `Bearer ${key.get()}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const sent = body === undefined ? undefined : JSON.stringify(body);
  let response;
  try {
    // Beside this page, wherever a proxy put it.
    response = await fetch(path, { method, headers, body: sent, signal, cache: "no-store", credentials: "same-origin" });
  } catch (error) {
    throw lost(error);
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

/** What the server answers. */
export async function call(path, options) {
  const response = await request(path, options);
  return response.json().catch((error) => {
    throw lost(error);
  });
}

/** A failure that came as an event. */
export const failed = (told) => new Failure(told?.message ?? "The server failed.", { status: 500, code: told?.code ?? "" });

/** The events of a stream, and its comments: { comment } or { event, data }. */
export async function* events(path, options) {
  const response = await request(path, { method: "POST", ...options });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let [rest, event, data] = ["", "", []];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "") {
          if (data.length) yield { event, data: data.join("\n") };
          [event, data] = ["", []];
        } else if (line.startsWith(":")) yield { comment: line.slice(1).trim() };
        else if (line.startsWith("event:")) event = line.slice(6).trim();
        else if (line.startsWith("data:")) data.push(line.slice(5).trim());
      }
    }
  } catch (error) {
    throw lost(error);
  } finally {
    reader.cancel().catch(() => {});
  }
}

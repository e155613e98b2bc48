// The conversation: one that is sent whole each time, or a session that the server keeps.

import { Answer, Question, action } from "./answer.js";
import { call, wasStopped } from "./api.js";
import * as composer from "./composer.js";
import { ask } from "./dialog.js";
import { $, el, setText } from "./dom.js";
import { completion, turn } from "./speech.js";
import { count, of } from "./words.js";

const talk = {
  /** The session's name, if it is one. */
  session: undefined,
  /** Tokens of the session, or of the conversation when it was sent last. */
  position: 0,
  /** What is sent, of a conversation that is. */
  messages: [],
  /** What is on the page, in order: { view, messages, start, end }. */
  turns: [],
  /** Stops what is under way. */
  stop: undefined,
  /** A question that got no answer: { text, files }. */
  unanswered: undefined,
};
let server = { model: "", context: 0, efforts: [], tools: false };
/** Called when there is work for the server, when sessions may have changed, and when another one is open. */
let hooks = { working: () => {}, changed: () => {}, opened: () => {} };

const log = () => $("log");
/** Whether the end is kept in view as it grows: until somebody scrolls up. */
let sticks = true;
let top = 0;
const follow = () => {
  if (sticks) log().scrollTop = log().scrollHeight;
  $("to-end").hidden = sticks;
};

function put(view, about = {}) {
  $("empty").hidden = true;
  view.onshow = follow;
  log().append(view.element);
  talk.turns.push({ view, ...about });
  follow();
  return talk.turns.at(-1);
}

function phase(text) {
  setText($("phase"), text);
}

/** Shows where the conversation ends. */
function measure() {
  const of = server.context ? ` of ${count(server.context)}` : "";
  setText($("depth"), talk.position ? `${count(talk.position)}${of} tokens` : "");
}

function busy(stop) {
  talk.stop = stop;
  $("send").hidden = Boolean(stop);
  $("stop").hidden = !stop;
}

function clear() {
  talk.stop?.abort();
  Object.assign(talk, { session: undefined, position: 0, messages: [], turns: [], stop: undefined, unanswered: undefined });
  log().replaceChildren();
  $("empty").hidden = false;
  sticks = true;
  busy(undefined);
  phase("");
  measure();
}

/** Begins a conversation that the server does not keep. */
export function begin() {
  clear();
  head();
  hooks.opened(undefined);
}

/** Goes on with a session. */
export async function open(name) {
  clear();
  talk.session = name;
  head();
  hooks.opened(name);
  phase("Opening the session");
  try {
    const session = await call(`v1/sessions/${encodeURIComponent(name)}?turns=true`);
    if (talk.session !== name) return;
    talk.position = session.position;
    for (const { role, text, thinking, start, end } of session.turns) {
      const view =
        role === "assistant" ? Answer.of(server.model, { text, thinking }) : new Question(text, [], role === "user" ? "You" : "Text");
      put(view, { start, end });
      view.at(start);
    }
    for (const one of talk.turns) actions(one);
    follow();
    measure();
    phase("");
  } catch (error) {
    if (talk.session !== name) return;
    begin();
    tell(error);
  }
}

/** Says in the log what went wrong with the whole. */
function tell(error) {
  $("empty").hidden = true;
  log().append(el("p", { class: "failure", role: "alert", text: error.message }));
  follow();
}

function head() {
  setText($("chat-title"), talk.session ?? "Chat");
  setText($("chat-about"), talk.session ? "a session that the server keeps" : "kept by this page only");
  $("chat-session").hidden = !talk.session;
  composer.offer(server, Boolean(talk.session));
}

/** What can be done with a turn. */
function actions(one) {
  const { view, start, end } = one;
  const all = [];
  if (view instanceof Answer && view.text && navigator.clipboard) {
    const copy = action("Copy", async () => {
      await navigator.clipboard.writeText(view.text).then(
        () => setText(copy, "Copied"),
        () => setText(copy, "Could not copy"),
      );
    });
    all.push(copy);
  }
  if (talk.session && view.element.classList.contains("user") && start !== undefined) {
    all.push(action("Rewind to before this", () => rewind(one)));
  } else if (talk.session && end !== undefined) {
    all.push(action("Fork here", () => fork(talk.session, end)));
  } else if (!talk.session && view instanceof Question) {
    all.push(action("Edit", () => edit(one)));
  }
  view.actions.replaceChildren(...all);
}

/** Takes back a question and what came after it, of a conversation that is sent whole. */
function edit(one) {
  if (talk.stop) return;
  const at = talk.turns.indexOf(one);
  talk.turns.splice(at).forEach((gone) => gone.view.remove());
  talk.messages.splice(one.at);
  talk.unanswered = undefined;
  talk.position = 0;
  $("empty").hidden = talk.turns.length > 0;
  composer.restore(one.asked);
  measure();
}

async function rewind(one) {
  if (talk.stop) return;
  const { session, position } = talk;
  const text = `Tokens ${count(one.start)} to ${count(position)} and the snapshots of them are deleted. The question goes back to where you write.`;
  if (!(await ask({ title: `Rewind ${session}?`, text, yes: "Rewind", danger: true }))) return;
  phase("Rewinding");
  try {
    await call(`v1/sessions/${encodeURIComponent(session)}/rewind`, { method: "POST", body: { position: one.start } });
    await open(session);
    composer.restore({ text: one.view.text, files: [] });
    hooks.changed();
  } catch (error) {
    phase("");
    tell(error);
  }
}

/** Asks for a name, forks a session, and goes on in the fork. */
export async function fork(session, position) {
  const field = { name: "name", label: "Name of the fork", maxlength: 64, pattern: "[A-Za-z0-9._\\-]+", hint: "Left empty, it gets one." };
  const text = `The fork has the first ${of(position, "token")}. Both share their pages until they differ.`;
  const said = await ask({ title: `Fork ${session}`, text, yes: "Fork", fields: [field] });
  if (!said) return;
  try {
    const body = { name: said.name || undefined, position };
    const forked = await call(`v1/sessions/${encodeURIComponent(session)}/fork`, { method: "POST", body });
    await open(forked.id);
    hooks.changed();
    $("words").focus();
  } catch (error) {
    tell(error);
  }
}

function submit() {
  if (talk.stop) return;
  const asked = composer.take();
  if (!asked) return;
  // What got no answer is not said twice.
  if (talk.unanswered) drop();
  const one = put(new Question(asked.text, asked.files), { asked, at: talk.messages.length });
  run(one, [{ role: "user", content: composer.whole(asked) }]);
}

/** Takes what got no answer off the page. */
function drop() {
  const at = talk.turns.indexOf(talk.unanswered);
  talk.turns.splice(at).forEach((gone) => gone.view.remove());
  talk.messages.splice(talk.unanswered.at);
  talk.unanswered = undefined;
}

/** Says something and lets the model answer. `one` is the turn that says it. */
async function run(one, said) {
  const system = $("system").value.trim();
  const answer = put(new Answer(server.model));
  const { view } = answer;
  const stop = new AbortController();
  const { session } = talk;
  busy(stop);
  sticks = true;
  follow();
  phase("Waiting for the server");
  view.waits("Waiting for the server");
  hooks.working();
  const start = talk.position;
  try {
    const first = system ? [{ role: "system", content: system }] : [];
    let steps;
    if (session) {
      steps = turn(session, { ...composer.options(true), messages: talk.position ? said : [...first, ...said] }, stop.signal);
    } else {
      const messages = [...first, ...talk.messages, ...said];
      steps = completion({ ...composer.options(false), model: server.model, messages }, stop.signal);
    }
    for await (const step of steps) {
      const now = view.take(step);
      if (now) phase(now);
      if (step.session) talk.position = step.session.position;
    }
    settle(one, answer, said, start);
    phase(`Answered: ${of(view.usage?.generated ?? 0, "token")}`);
  } catch (error) {
    if (talk.session !== session || !talk.turns.includes(answer)) return;
    await fail(error, one, answer, said, start);
  }
  if (talk.stop === stop) busy(undefined);
  follow();
  hooks.changed();
}

/** Keeps a turn and its answer. */
function settle(one, answer, said, start) {
  const { view } = answer;
  view.end();
  const calls = view.calls.filter(Boolean);
  const spoken = { role: "assistant", content: view.text };
  if (view.thinking) spoken.reasoning_content = view.thinking;
  if (calls.length) {
    spoken.tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  }
  if (!talk.session) talk.messages.push(...said, spoken);
  if (view.usage) {
    const { prompt, generated } = view.usage;
    if (!talk.session) talk.position = prompt + generated;
    Object.assign(answer, { start: prompt, end: talk.position });
    view.at(prompt);
  }
  Object.assign(one, { start, end: answer.start });
  one.view.at(start);
  actions(one);
  actions(answer);
  measure();
  if (calls.length) results(answer, calls);
}

/** Asks for what the called tools give. */
function results(answer, calls) {
  const fields = calls.map((one, i) => {
    const id = `result-${talk.turns.length}-${i}`;
    const field = el("textarea", { id, rows: 2, required: true });
    one.box.append(el("label", { for: id, text: `Result of ${one.name}` }), field);
    return field;
  });
  const form = el("form", {}, el("button", { class: "main", text: calls.length > 1 ? "Send the results" : "Send the result" }));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (talk.stop || talk.turns.at(-1) !== answer) return;
    form.remove();
    fields.forEach((field) => (field.readOnly = true));
    const said = calls.map((one, i) => ({ role: "tool", tool_call_id: one.id, content: fields[i].value }));
    const text = said.map(({ content }) => content).join("\n");
    const shown = put(new Question(text, [], "Tools"), { asked: { text: "", files: [] }, at: talk.messages.length });
    run(shown, said);
  });
  answer.view.body.append(form);
  follow();
}

/** Says what went wrong, and keeps what there is. */
async function fail(error, one, answer, said, start) {
  const { view } = answer;
  const stopped = wasStopped(error);
  const began = Boolean(view.text || view.thinking);
  const read = Boolean(view.reading);
  if (began && !(talk.session && !stopped)) {
    if (talk.session) await find(talk.session);
    settle(one, answer, said, start);
    if (talk.session) answer.end = talk.position;
  } else {
    view.end();
    talk.unanswered = one;
    one.view.actions.replaceChildren();
  }
  const lingers = read && !talk.session ? " The server reads the prompt on for a while, so that sending it again goes on from there." : "";
  const text = stopped ? `Stopped.${began ? "" : lingers}` : error.message;
  const again = action("Try again", () => {
    if (talk.stop) return;
    talk.turns.splice(talk.turns.indexOf(answer)).forEach((gone) => gone.view.remove());
    talk.unanswered = undefined;
    run(one, said);
  });
  view.note(text, !stopped, !began && again);
  if (error.wait) countdown(again, error.wait);
  phase(text);
}

/** Lets a button wait as long as the server asks for. */
function countdown(button, seconds) {
  const text = button.textContent;
  button.disabled = true;
  const tick = () => {
    setText(button, seconds > 0 ? `${text} in ${seconds} s` : text);
    button.disabled = seconds > 0;
    seconds -= 1;
    if (seconds >= 0) setTimeout(tick, 1000);
  };
  tick();
}

/** Finds out where a session is that was stopped, once it is at rest. */
async function find(session) {
  for (let i = 0; i < 20; i += 1) {
    const { position, busy: works } = await call(`v1/sessions/${encodeURIComponent(session)}`).catch(() => ({ busy: true }));
    if (!works) {
      talk.position = position;
      return;
    }
    await new Promise((wait) => setTimeout(wait, 250));
  }
}

/** What the server is, for what is offered here. */
export function served(status) {
  const known = JSON.stringify([server.model, server.efforts, server.tools, server.thinking, server.context]);
  server = status;
  if (known === JSON.stringify([server.model, server.efforts, server.tools, server.thinking, server.context])) return;
  head();
  measure();
}

/** The session that is open. */
export const current = () => talk.session;

/** Connects what is on the page. */
export function start(with_) {
  hooks = with_;
  composer.start(submit);
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && talk.stop && !document.querySelector("dialog[open]")) talk.stop.abort();
  });
  $("stop").addEventListener("click", () => {
    talk.stop?.abort();
    $("words").focus();
  });
  $("chat-new").addEventListener("click", () => {
    begin();
    $("words").focus();
  });
  $("chat-fork").addEventListener("click", () => fork(talk.session, talk.position));
  $("to-end").addEventListener("click", () => {
    sticks = true;
    follow();
  });
  log().addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = log();
    // It may have grown since it was scrolled to its end.
    if (scrollTop < top) sticks = false;
    if (scrollHeight - scrollTop - clientHeight < 40) sticks = true;
    top = scrollTop;
    $("to-end").hidden = sticks;
  });
  head();
}

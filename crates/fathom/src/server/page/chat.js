// What is said: sent, answered, stopped, gone wrong, said again.

import { Answer, Question, action } from "./answer.js";
import { call, wasStopped } from "./api.js";
import { actions, begin, fork, head, open, path } from "./branch.js";
import * as composer from "./composer.js";
import { $, el, setText } from "./dom.js";
import { completion, turn } from "./speech.js";
import { busy, cut, follow, measure, phase, put, startLog, talk, toEnd } from "./talk.js";
import { of } from "./words.js";

function submit() {
  if (talk.stop) return;
  const asked = composer.take();
  if (!asked) return;
  // What got no answer is not said twice.
  if (talk.unanswered) {
    talk.messages.splice(talk.unanswered.at);
    cut(talk.unanswered);
  }
  const one = put(new Question(asked.text, asked.files), { asked, at: talk.messages.length });
  run(one, [{ role: "user", content: composer.whole(asked) }]);
}

/** Says something and lets the model answer. `one` is the turn that says it. */
async function run(one, said) {
  const system = $("system").value.trim();
  const answer = put(new Answer(talk.server.model));
  const { view } = answer;
  const stop = new AbortController();
  const { session } = talk;
  busy(stop);
  toEnd();
  phase("Waiting for the server");
  view.waits("Waiting for the server");
  talk.hooks.working();
  await talk.rest;
  const start = talk.position;
  try {
    const first = system ? [{ role: "system", content: system }] : [];
    let steps;
    if (session) {
      steps = turn(session, { ...composer.options(true), messages: talk.position ? said : [...first, ...said] }, stop.signal);
    } else {
      const messages = [...first, ...talk.messages, ...said];
      steps = completion({ ...composer.options(false), model: talk.server.model, messages }, stop.signal);
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
  talk.hooks.changed();
}

/** Keeps a turn and its answer. */
function settle(one, answer, said, start) {
  const { view } = answer;
  view.end();
  // Calls that were cut off are none.
  const calls = view.reason ? view.calls.filter(Boolean) : [];
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
    const shown = put(new Question(text, [], "Tools"), { at: talk.messages.length });
    run(shown, said);
  });
  answer.view.body.append(form);
  follow();
}

/** Says what went wrong, and keeps what there is. */
async function fail(error, one, answer, said, start) {
  const { view } = answer;
  const { session } = talk;
  const stopped = wasStopped(error);
  const began = Boolean(view.text || view.thinking);
  const again = action("Try again", () => retry(one, answer, said, start));
  const text = stopped ? "Stopped." : error.message;
  phase(text);
  if (!began) {
    view.end();
    talk.unanswered = one;
    one.view.actions.replaceChildren();
    const lingers = " The server reads the prompt on for a while, so that sending it again goes on from there.";
    view.note(stopped && view.reading && !session ? text + lingers : text, !stopped, again);
    if (error.wait) countdown(again, error.wait);
    if (session && stopped) talk.rest = find(session);
  } else if (session && !stopped) {
    view.end();
    view.note(text, true, action("Show what the session has", () => open(session)));
  } else {
    if (session) await find(session);
    settle(one, answer, said, start);
    if (session) {
      // It has what was said until then.
      Object.assign(answer, { end: talk.position });
      actions(answer);
    }
    view.note(text, !stopped);
  }
}

/** Says once more what got no answer. */
async function retry(one, answer, said, start) {
  const { session } = talk;
  if (talk.stop) return;
  if (session) {
    // It may have got one that did not come here.
    await find(session);
    if (talk.session !== session) return undefined;
    if (talk.position !== start) return open(session);
  }
  cut(answer);
  return run(one, said);
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
    const { position, busy: works } = await call(path(session)).catch(() => ({ busy: true }));
    if (!works) {
      if (talk.session === session) talk.position = position;
      return;
    }
    await new Promise((wait) => setTimeout(wait, 250));
  }
}

/** What the server is, for what is offered here. */
export function served(status) {
  const about = ({ model, efforts, tools, thinking, context }) => JSON.stringify([model, efforts, tools, thinking, context]);
  const isSame = about(talk.server) === about(status);
  talk.server = status;
  if (isSame) return;
  head();
  measure();
}

/** Connects what is on the page. */
export function start(hooks) {
  talk.hooks = hooks;
  composer.start(submit);
  startLog();
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
  head();
}

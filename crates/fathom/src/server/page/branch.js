// Conversations: a new one, a session of the server's, its forks, and the way back.

import { Answer, Question, action } from "./answer.js";
import { call } from "./api.js";
import * as composer from "./composer.js";
import { ask } from "./dialog.js";
import { $, setText } from "./dom.js";
import { clear, cut, follow, measure, phase, put, talk, tell } from "./talk.js";
import { count, of } from "./words.js";

/** A session's address. */
export const path = (name, more = "") => `v1/sessions/${encodeURIComponent(name)}${more}`;

/** Begins a conversation that the server does not keep. */
export function begin() {
  clear();
  head();
  talk.hooks.opened(undefined);
}

/** Goes on with a session. */
export async function open(name) {
  clear();
  talk.session = name;
  head();
  talk.hooks.opened(name);
  phase("Opening the session");
  try {
    const session = await call(path(name, "?turns=true"));
    if (talk.session !== name) return;
    talk.position = session.position;
    for (const { role, text, thinking, start, end } of session.turns) {
      const view =
        role === "assistant" ? Answer.of(talk.server.model, { text, thinking }) : new Question(text, [], role === "user" ? "You" : "Text");
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

/** Shows what conversation it is, and offers what it can do. */
export function head() {
  setText($("chat-title"), talk.session ?? "Chat");
  setText($("chat-about"), talk.session ? "a session that the server keeps" : "kept by this page only");
  $("chat-session").hidden = !talk.session;
  composer.offer(talk.server, Boolean(talk.session));
}

/** What can be done with a turn. */
export function actions(one) {
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
  } else if (!talk.session && one.asked) {
    all.push(action("Edit", () => edit(one)));
  }
  view.actions.replaceChildren(...all);
}

/** Takes back a question and what came after it, of a conversation that is sent whole. */
function edit(one) {
  if (talk.stop) return;
  cut(one);
  talk.messages.splice(one.at);
  talk.position = 0;
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
    await call(path(session, "/rewind"), { method: "POST", body: { position: one.start } });
    await open(session);
    composer.restore({ text: one.view.text, files: [] });
    talk.hooks.changed();
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
    const forked = await call(path(session, "/fork"), { method: "POST", body });
    await open(forked.id);
    talk.hooks.changed();
    $("words").focus();
  } catch (error) {
    tell(error);
  }
}

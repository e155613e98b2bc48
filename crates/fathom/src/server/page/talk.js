// The conversation that is on the page, and where it is shown.

import { $, el, setText } from "./dom.js";
import { count } from "./words.js";

export const talk = {
  /** The session's name, if it is one that the server keeps. */
  session: undefined,
  /** Tokens of the session, or of the conversation when it was sent last. */
  position: 0,
  /** What is sent, of a conversation that is sent whole each time. */
  messages: [],
  /** What is on the page, in order: { view, start, end }, and of a question { asked, at }: its words, its place in the messages. */
  turns: [],
  /** Stops what is under way. */
  stop: undefined,
  /** A question that got no answer. */
  unanswered: undefined,
  /** What to wait for before more is said: a session that was stopped comes to rest. */
  rest: undefined,
  /** What the server is. */
  server: { model: "", context: 0, efforts: [], tools: false },
  /** Called when there is work for the server, when sessions may have changed, and when another one is open. */
  hooks: { working: () => {}, changed: () => {}, opened: () => {} },
};

const log = () => $("log");
/** Whether the end is kept in view as it grows: until somebody scrolls up. */
let sticks = true;
let top = 0;

/** Keeps the end in view, if it was. */
export function follow() {
  if (sticks) log().scrollTop = log().scrollHeight;
  $("to-end").hidden = sticks;
}

/** Brings the end into view, and keeps it there. */
export function toEnd() {
  sticks = true;
  follow();
}

/** Puts a turn at the end. */
export function put(view, about = {}) {
  $("empty").hidden = true;
  view.onshow = follow;
  view.onspeak = (text) => setText($("spoken"), text);
  log().append(view.element);
  talk.turns.push({ view, ...about });
  follow();
  return talk.turns.at(-1);
}

/** Takes a turn and what comes after it off the page. */
export function cut(one) {
  const at = talk.turns.indexOf(one);
  if (at >= 0) talk.turns.splice(at).forEach((gone) => gone.view.remove());
  talk.unanswered = undefined;
  $("empty").hidden = talk.turns.length > 0;
}

/** Says in the log what went wrong with the whole. */
export function tell(error) {
  $("empty").hidden = true;
  log().append(el("p", { class: "failure", role: "alert", text: error.message }));
  follow();
}

/** Says, to those who listen, what is going on. */
export const phase = (text) => setText($("phase"), text);

/** Shows where the conversation ends. */
export function measure() {
  const { context } = talk.server;
  const most = context ? ` of ${count(context)}` : "";
  setText($("depth"), talk.position ? `${count(talk.position)}${most} tokens` : "");
}

/** Notes what stops the work that is under way, or that there is none. */
export function busy(stop) {
  talk.stop = stop;
  $("send").hidden = Boolean(stop);
  $("stop").hidden = !stop;
}

/** Stops what is under way, and forgets what there was. */
export function clear() {
  talk.stop?.abort();
  Object.assign(talk, { session: undefined, position: 0, messages: [], turns: [], unanswered: undefined, rest: undefined });
  log().replaceChildren();
  $("empty").hidden = false;
  sticks = true;
  busy(undefined);
  phase("");
  measure();
}

/** Connects what is on the page. */
export function startLog() {
  $("to-end").addEventListener("click", toEnd);
  // The window may become another, or the part with the chat be shown.
  new ResizeObserver(follow).observe(log());
  log().addEventListener("scroll", () => {
    const { scrollTop, scrollHeight, clientHeight } = log();
    // It may have grown since it was scrolled to its end.
    if (scrollTop < top) sticks = false;
    if (scrollHeight - scrollTop - clientHeight < 40) sticks = true;
    top = scrollTop;
    $("to-end").hidden = sticks;
  });
}

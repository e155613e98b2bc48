// The page: its parts, the key, and whether the server is there.

import { call, key } from "./api.js";
import { begin, open } from "./branch.js";
import * as chat from "./chat.js";
import { $, setText } from "./dom.js";
import * as now from "./now.js";
import * as sessions from "./sessions.js";
import { talk } from "./talk.js";

/** Seconds between two looks at the server: while it works, while it does not, and the most while it is not there. */
const [WORKING, IDLE, AWAY] = [1, 4, 30];

let timer;
let away = 0;

/** Looks at the server, and again after a while. */
async function look() {
  clearTimeout(timer);
  let pause = IDLE;
  try {
    const status = await call("v1/status");
    if (away || !$("key-form").hidden) sessions.refresh();
    away = 0;
    say("");
    if (!asked) wantKey(false);
    document.body.classList.remove("unknown");
    setText($("model"), status.model);
    document.title = `${status.model} · fathom`;
    $("sessions-kept").hidden = !status.sessions || status.sessions.stored;
    $("sessions").classList.toggle("none", !status.sessions);
    now.show(status);
    chat.served(status);
    const { running, waiting } = status.requests;
    if (running + waiting + status.prefills.length > 0) pause = WORKING;
  } catch (error) {
    pause = trouble(error);
  }
  if (!document.hidden) timer = setTimeout(look, pause * 1000);
}

/** Says why nothing is known, and after how many seconds to look again. */
function trouble(error) {
  document.body.classList.add("unknown");
  if (error.status === 401) {
    say(key.get() ? "The server does not know this key." : "This server asks for an API key.");
    wantKey(true);
    return AWAY;
  }
  away = Math.min(AWAY, Math.max(1, away * 2));
  const what = error.status === 0 ? "No connection to the server." : error.message;
  say(`${what} Trying again every ${away === 1 ? "second" : `${away} seconds`}.`);
  return error.wait || away;
}

function say(text) {
  setText($("trouble"), text);
  $("trouble").hidden = !text;
}

/** Whether somebody asked for the field of the key. */
let asked = false;

function wantKey(wanted) {
  if ($("key-form").hidden === !wanted) return;
  $("key-form").hidden = !wanted;
  $("key-open").setAttribute("aria-expanded", String(wanted));
  if (wanted) {
    $("key").value = key.get();
    if (asked || document.activeElement === document.body) $("key").focus();
  }
}

/** Another key is another's sessions. */
function changeKey(value) {
  key.set(value);
  asked = false;
  wantKey(false);
  begin();
  sessions.refresh();
  look();
}

const VIEWS = ["sessions", "chat", "now"];

/** Shows the part that the address names; where there is room, all are shown. */
function view() {
  const [name, session] = location.hash.slice(1).split("/");
  const shown = VIEWS.includes(name) ? name : "chat";
  document.body.dataset.view = shown;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash.slice(1).split("/")[0] === shown) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  // Names need no escapes.
  if (session && session !== talk.session) open(session);
}

/** Puts the session that is open into the address, so that it is open again when the page is loaded again. */
function opened(name) {
  const hash = name ? `#chat/${name}` : "#chat";
  if (location.hash !== hash) history.replaceState(null, "", hash);
  $("nav-chat").href = hash;
  view();
  sessions.draw();
}

const changed = () => {
  sessions.refresh();
  look();
};

chat.start({ working: look, changed, opened });
sessions.start(changed);
$("key-open").addEventListener("click", () => {
  asked = $("key-form").hidden;
  wantKey(asked);
});
$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  changeKey($("key").value.trim());
});
$("key-forget").addEventListener("click", () => {
  $("key").value = "";
  changeKey("");
});
addEventListener("hashchange", view);
addEventListener("online", look);
document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(timer) : look()));
await look();
sessions.refresh();
view();

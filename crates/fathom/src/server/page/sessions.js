// The sessions that the server keeps: a tree, and what can be done with each.

import { call } from "./api.js";
import { begin, fork, open, path } from "./branch.js";
import { ask } from "./dialog.js";
import { $, el, setText } from "./dom.js";
import { talk } from "./talk.js";
import { ago, count, of } from "./words.js";

/** So many are listed without a field to look for one. */
const FEW = 12;

let all = [];
let unfolded;
/** Called when something was changed. */
let changed = () => {};

/** Asks for the list again. */
export async function refresh() {
  try {
    all = (await call("v1/sessions")).data;
    draw();
  } catch (error) {
    // That the server is not there, or wants a key, is said elsewhere.
    if (![0, 401].includes(error.status)) setText($("sessions-problem"), error.message);
  }
}

/** Says what went wrong with something. */
async function attempt(work) {
  setText($("sessions-problem"), "");
  try {
    return await work();
  } catch (error) {
    setText($("sessions-problem"), error.message);
    return undefined;
  } finally {
    changed();
  }
}

/** Draws the tree. */
export function draw() {
  const wanted = $("sessions-find").value.trim().toLowerCase();
  $("sessions-find-field").hidden = all.length <= FEW && !wanted;
  $("sessions-empty").hidden = all.length > 0;
  const works = all.filter((one) => one.busy).length;
  setText($("now-sessions"), count(all.length));
  setText($("now-busy"), works ? `kept, ${count(works)} at work` : "kept");
  const names = new Set(all.map((one) => one.id));
  const children = new Map();
  for (const one of all) {
    const parent = names.has(one.parent?.session) ? one.parent.session : "";
    children.set(parent, [...(children.get(parent) ?? []), one]);
  }
  const focused = document.activeElement?.dataset?.control;
  const seen = new Set();
  const branch = (parent) => {
    const items = [];
    for (const one of children.get(parent) ?? []) {
      if (seen.has(one.id)) continue;
      seen.add(one.id);
      const below = branch(one.id);
      if (wanted && !one.id.toLowerCase().includes(wanted) && !below) continue;
      items.push(item(one, names, below));
    }
    return items.length ? el("ul", { class: "tree" }, ...items) : undefined;
  };
  const tree = branch("");
  $("sessions-list").replaceChildren(...(tree ? [tree] : []));
  if (focused) document.querySelector(`[data-control="${CSS.escape(focused)}"]`)?.focus();
}

function item(one, names, below) {
  const { id, position, parent, busy, pinned, snapshots } = one;
  const isOpen = talk.session === id;
  const about = [of(position, "token")];
  if (busy) about.push("at work");
  if (pinned) about.push("pinned");
  const name = el(
    "button",
    { type: "button", class: "name", "aria-current": isOpen && "true", "data-control": `open ${id}`, onclick: () => open(id) },
    el("span", { text: id }),
    el("small", { text: about.join(" · ") }),
  );
  const more = `more-${id}`;
  const isUnfolded = unfolded === id;
  const fold = el("button", {
    type: "button",
    class: "quiet fold",
    "aria-expanded": String(isUnfolded),
    "aria-controls": isUnfolded && more,
    "aria-label": `More of ${id}`,
    "data-control": `more ${id}`,
    text: "⋯",
    onclick: () => {
      unfolded = isUnfolded ? undefined : id;
      draw();
    },
  });
  const row = el("div", { class: "row" }, name, fold);
  if (!isUnfolded) return el("li", {}, row, below);
  const facts = [];
  if (parent) facts.push(`Forked from ${parent.session} at token ${count(parent.position)}${names.has(parent.session) ? "" : ", which is gone"}.`);
  facts.push(`Used ${ago(one.used)}.`);
  facts.push(snapshots.length ? `Stored at ${snapshots.map(count).join(", ")}.` : "Not stored.");
  const button = (text, onclick, about = {}) =>
    el("button", { type: "button", text, onclick, "data-control": `${text} ${id}`, ...about });
  const shown = el(
    "div",
    { id: more, class: "more" },
    el("p", { text: facts.join(" ") }),
    el(
      "p",
      { class: "row wrap" },
      button("Fork", () => fork(id, position)),
      button("Rewind", () => rewind(one), { disabled: position === 0 || busy }),
      talk.server.sessions?.stored && button(pinned ? "Unpin" : "Pin", () => pin(one), { disabled: busy || position === 0 }),
      button("Delete", () => remove(one), { class: "danger", disabled: busy }),
    ),
  );
  return el("li", {}, row, shown, below);
}

async function rewind({ id, position, snapshots }) {
  const before = snapshots.filter((at) => at < position);
  const hint = before.length ? `States are stored at ${before.map(count).join(", ")}.` : "The tokens up to there may have to be read again.";
  const field = { name: "position", label: `Position, from 0 to ${count(position)}`, type: "number", min: 0, max: position, value: before.at(-1) ?? 0, required: true, hint };
  const text = "What comes after the position is taken back, and the snapshots of it are deleted.";
  const said = await ask({ title: `Rewind ${id}`, text, yes: "Rewind", fields: [field] });
  if (!said) return;
  await attempt(async () => {
    await call(path(id, "/rewind"), { method: "POST", body: { position: Number(said.position) } });
    if (talk.session === id) open(id);
  });
}

const pin = ({ id, pinned }) => attempt(() => call(path(id, "/pin"), { method: "POST", body: { pinned: !pinned } }));

async function remove({ id, position }) {
  const text = `${of(position, "token")}, and the snapshots that nothing else uses, are deleted. This cannot be undone.`;
  if (!(await ask({ title: `Delete ${id}?`, text, yes: "Delete", danger: true }))) return;
  await attempt(async () => {
    await call(path(id), { method: "DELETE" });
    if (talk.session === id) begin();
    $("sessions-new-name").focus();
  });
}

/** Connects what is on the page. */
export function start(whenChanged) {
  changed = whenChanged;
  $("sessions-find").addEventListener("input", draw);
  $("sessions-new").addEventListener("submit", async (event) => {
    event.preventDefault();
    const name = $("sessions-new-name").value.trim();
    const made = await attempt(() => call("v1/sessions", { method: "POST", body: name ? { name } : {} }));
    if (!made) return;
    $("sessions-new-name").value = "";
    open(made.id);
  });
}

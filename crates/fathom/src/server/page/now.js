// What the server is doing now.

import { call } from "./api.js";
import { $, el, setText } from "./dom.js";
import { bytes, count, duration, of, progress, rough } from "./words.js";

/** Speeds of so many seconds are drawn. */
const DRAWN = 60;
/** A speed is that of the last few seconds. */
const OVER = 3;

/** What was seen: { seconds, read, generated }. */
let looks = [];
/** The rows of prompts that are being read, by their ids. */
const rows = new Map();

/** Shows a status. */
export function show(status) {
  const { seconds, tokens, requests, memory, prefills } = status;
  const last = looks.at(-1);
  // Another server, or the same one once more.
  if (last && seconds < last.seconds) looks = [];
  looks.push({ seconds, read: tokens.read, generated: tokens.generated });
  looks = looks.filter((look) => seconds - look.seconds <= DRAWN);
  flow("read", "in");
  flow("generated", "out");
  const { running, waiting } = requests;
  setText($("now-running"), count(running));
  setText($("now-waiting"), count(waiting));
  reading(prefills);
  holds(memory);
  setText($("now-since"), `In ${duration(seconds)}: ${of(tokens.read, "token")} read, ${count(tokens.reused)} reused, ${count(tokens.generated)} generated.`);
}

/** Tokens in a second between two looks. */
const rate = (from, to, kind) => (to.seconds > from.seconds ? (to[kind] - from[kind]) / (to.seconds - from.seconds) : 0);

function flow(kind, id) {
  const last = looks.at(-1);
  const from = looks.findLast((look) => last.seconds - look.seconds >= OVER) ?? looks[0];
  setText($(`now-${id}`), rough(rate(from, last, kind)));
  const rates = looks.slice(1).map((look, i) => rate(looks[i], look, kind));
  const most = Math.max(1, ...rates);
  const at = (i) => (120 * (1 - (last.seconds - looks[i].seconds) / DRAWN)).toFixed(1);
  // A speed is that of all the time between two looks.
  const points = rates.flatMap((one, i) => [i, i + 1].map((end) => `${at(end)},${(31 - (30 * one) / most).toFixed(1)}`));
  $(`now-${id}-line`).setAttribute("points", points.join(" "));
}

/** The prompts that are being read. */
function reading(prefills) {
  $("now-reading-none").hidden = prefills.length > 0;
  const ids = new Set(prefills.map((one) => one.id));
  for (const [id, row] of rows) {
    if (ids.has(id)) continue;
    row.item.remove();
    rows.delete(id);
  }
  for (const one of prefills) {
    const row = rows.get(one.id) ?? begin(one.id);
    row.bar.max = one.tokens;
    row.bar.value = one.tokens_done;
    setText(row.text, progress({ done: one.tokens_done, total: one.tokens, speed: one.tokens_per_second ?? 0 }));
    const about = [one.tokens_reused > 0 && `${count(one.tokens_reused)} reused`, !one.awaited && "its client has left"].filter(Boolean);
    setText(row.about, about.join(" · "));
  }
}

function begin(id) {
  const label = `Prompt ${id}`;
  const stop = el("button", { type: "button", text: "Stop", "aria-label": `Stop reading prompt ${id}` });
  const row = { bar: el("progress", { "aria-label": label }), text: el("span"), about: el("small") };
  stop.addEventListener("click", async () => {
    stop.disabled = true;
    await call(`v1/prefills/${id}`, { method: "DELETE" }).catch((error) => {
      // It may have come to its end meanwhile.
      if (error.status !== 404) setText(row.about, error.message);
      stop.disabled = false;
    });
  });
  row.item = el("li", {}, el("div", {}, row.text, " ", row.about, row.bar), stop);
  rows.set(id, row);
  $("now-reading").append(row.item);
  return row;
}

const NAMES = { weights: "Weights", experts: "Experts", state: "Sessions' state", scratch: "Scratch", process: "Whole process" };

/** Memory against its budget. */
function holds({ shares, process }) {
  const all = [...shares];
  if (process.held !== null) all.push({ share: "process", held: process.held, peak: process.peak, limit: process.planned });
  const list = $("now-memory");
  if (list.childElementCount !== all.length) {
    list.replaceChildren(...all.map(() => el("li", {}, el("span"), el("span", { class: "figure" }), gauge(), el("small"))));
  }
  all.forEach(({ share, held, peak, limit }, i) => {
    const [name, figure, bar, small] = list.children[i].children;
    setText(name, NAMES[share] ?? share);
    setText(figure, limit ? `${bytes(held)} of ${bytes(limit)}` : bytes(held));
    setText(small, !peak ? "" : `peak ${bytes(peak)}`);
    bar.hidden = !limit;
    const part = (n) => `${Math.min(100, (100 * n) / limit)}%`;
    bar.children[0].style.inlineSize = part(held);
    bar.children[1].hidden = !peak;
    bar.children[1].style.insetInlineStart = part(peak ?? held);
    bar.classList.toggle("over", held > limit);
  });
}

/** A bar with a mark for the peak; what it shows is beside it in words. */
const gauge = () => el("div", { class: "gauge", "aria-hidden": "true" }, el("span"), el("i"));

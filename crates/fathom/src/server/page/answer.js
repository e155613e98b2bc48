// A turn of a conversation on the page.

import { el, setText } from "./dom.js";
import { Prose } from "./prose.js";
import { bytes, count, duration, of, progress, speed } from "./words.js";

/** More text than this of a question is shown when asked for. */
const MUCH = 600;
/** What is said where calls could not be taken for such. */
const MALFORMED = "The model wrote something that looks like tool calls and is none; it is shown as text, and nothing was called.";
/** The time between two looks at what has come, in milliseconds, and between two times that it is read out. */
const [PACE, BREATH] = [60, 2500];

/** A button that does something with a turn. */
export const action = (text, onclick, about = {}) => el("button", { type: "button", class: "quiet", text, onclick, ...about });

/** A frame for a turn: who says it, where it begins in tokens, what is said, what can be done. */
class Turn {
  constructor(kind, who) {
    this.depth = el("span", { class: "depth" });
    this.body = el("div", { class: "body" });
    this.actions = el("p", { class: "actions" });
    this.element = el(
      "article",
      { class: `turn ${kind}`, "aria-label": who },
      el("div", { class: "row head" }, el("h3", { text: who }), this.depth, this.actions),
      this.body,
    );
  }

  /** Says where the turn begins. */
  at(position) {
    if (position === undefined) return;
    setText(this.depth, count(position));
    this.depth.title = `Begins at token ${count(position)} of the conversation`;
  }

  remove() {
    this.element.remove();
  }
}

/** What a person said, with the files that go along. */
export class Question extends Turn {
  constructor(text, files = [], who = "You") {
    super(who === "You" ? "user" : "system", who);
    this.text = text;
    if (files.length) {
      const all = files.map((file) => el("li", { text: `${file.name} (${bytes(file.text.length)})` }));
      this.body.append(el("ul", { class: "files", "aria-label": "Files" }, ...all));
    }
    const shown = el("p", { class: "plain", text: text.slice(0, MUCH) });
    if (text) this.body.append(shown);
    if (text.length > MUCH) {
      shown.append("…");
      const all = action(`Show all ${count(text.length)} characters`, () => {
        shown.textContent = text;
        all.remove();
      });
      this.body.append(all);
    }
  }
}

/** What the model says, as it comes. */
export class Answer extends Turn {
  constructor(who) {
    super("model", who);
    this.text = "";
    this.thinking = "";
    this.calls = [];
    this.prefix = undefined;
    this.usage = undefined;
    this.since = performance.now();
    this.wait = el("div", { class: "wait" });
    this.foot = el("div", { class: "foot" });
    this.body.append(this.wait);
    this.body.after(this.foot);
    this.fresh = { thinking: "", text: "" };
    /** Called when something new is to be seen, and with what is to be read out. */
    this.onshow = () => {};
    this.onspeak = () => {};
    /** What was not read out yet, and when something was for the last time. */
    this.unspoken = { text: "", since: performance.now() };
    this.element.setAttribute("aria-busy", "true");
  }

  /** Takes a step; says in a few words what phase it is in. */
  take(step) {
    if (step.queued !== undefined) return this.waits(`Waiting: ${of(step.queued, "request")} ahead`);
    if (step.read !== undefined) return this.reads(step.read, step.total);
    if (step.thinking) return this.says("thinking", step.thinking);
    if (step.text) return this.says("text", step.text);
    if (step.call) return this.calling(step.call);
    if (step.malformed) this.malformed = true;
    if (step.end) this.reason = step.end;
    if (step.usage) this.usage = step.usage;
    if (step.prefix) this.prefix = step.prefix;
    return undefined;
  }

  waits(text) {
    this.wait.replaceChildren(el("p", { text }));
    return text;
  }

  reads(done, total) {
    const now = performance.now();
    this.reading ??= { from: done, since: now };
    const seconds = (now - this.reading.since) / 1000;
    const rate = seconds > 0.2 ? (done - this.reading.from) / seconds : 0;
    if (!this.bar) {
      const label = "Reading the prompt";
      this.bar = { value: el("progress", { "aria-label": label }), text: el("span"), reused: el("span") };
      const { value, text, reused } = this.bar;
      this.wait.replaceChildren(el("p", {}, `${label}: `, text), value, el("p", { class: "soft" }, reused));
    }
    this.bar.value.max = total;
    this.bar.value.value = done;
    setText(this.bar.text, progress({ done, total, speed: rate }));
    const { from } = this.reading;
    setText(this.bar.reused, from > 0 ? `${of(from, "token")} were there already` : "");
    return `Reading the prompt, ${Math.floor((4 * done) / total) * 25} %`;
  }

  says(kind, text) {
    this[kind] += text;
    this.fresh[kind] += text;
    this.first ??= performance.now();
    this.timer ??= setTimeout(() => this.show(), PACE);
    return kind === "thinking" ? "Thinking" : "Answering";
  }

  /** Brings what came since the last time onto the page. */
  show() {
    clearTimeout(this.timer);
    this.timer = undefined;
    if (this.fresh.thinking) {
      this.fold ??= this.thoughts();
      this.fold.prose.append(this.fresh.thinking);
    }
    if (this.fresh.text) {
      this.done(this.fold);
      this.prose ??= this.words();
      this.prose.append(this.fresh.text);
      this.unspoken.text += this.fresh.text;
      this.speak(/^[^]*[.!?:\n](?=\s)/);
    }
    this.fresh = { thinking: "", text: "" };
    this.onshow();
  }

  /** Reads out whole sentences, now and then: not every word as it comes. */
  speak(what, breath = BREATH) {
    const now = performance.now();
    const [said] = now - this.unspoken.since < breath ? [] : (what.exec(this.unspoken.text) ?? []);
    if (!said) return;
    this.unspoken = { text: this.unspoken.text.slice(said.length), since: now };
    this.onspeak(said);
  }

  thoughts() {
    this.wait.replaceChildren();
    const inside = el("div", { class: "prose" });
    const title = el("summary", { text: "Thinking…" });
    const details = el("details", { class: "thinking", open: true }, title, inside);
    this.body.append(details);
    return { details, title, prose: new Prose(inside), since: performance.now() };
  }

  /** Folds the thinking that has come to its end. */
  done(fold) {
    if (!fold || fold.over) return;
    fold.over = true;
    fold.prose.end();
    fold.details.open = false;
    setText(fold.title, fold.since ? `Thought for ${duration((performance.now() - fold.since) / 1000)}` : "Thinking");
  }

  words() {
    this.wait.replaceChildren();
    const inside = el("div", { class: "prose" });
    this.body.append(inside);
    return new Prose(inside);
  }

  calling({ index, id, name, arguments: more }) {
    this.show();
    this.done(this.fold);
    this.wait.replaceChildren();
    let call = this.calls[index];
    if (!call) {
      call = { id, name, arguments: "", shown: el("pre", { tabindex: 0, role: "region", "aria-label": `Arguments of ${name}` }) };
      this.calls[index] = call;
      const title = el("p", {}, "Calls ", el("code", { text: name }));
      call.box = el("section", { class: "call", "aria-label": `Call of ${name}` }, title, call.shown);
      this.body.append(call.box);
    }
    call.arguments += more;
    setText(call.shown, call.arguments);
    this.onshow();
    return "Calling a tool";
  }

  /** Nothing more comes. */
  end() {
    this.show();
    this.prose?.end();
    this.speak(/^[^]+/, 0);
    this.done(this.fold);
    this.wait.replaceChildren();
    for (const call of this.calls.filter(Boolean)) {
      try {
        call.shown.textContent = JSON.stringify(JSON.parse(call.arguments), null, 2);
      } catch {
        // Shown as it came.
      }
    }
    if (this.usage) this.report();
    if (this.malformed) this.note(MALFORMED);
    this.element.removeAttribute("aria-busy");
    this.onshow();
  }

  /** What the prompt and the answer took, and how much of the prompt was there already. */
  report() {
    const { prompt, reused, generated } = this.usage;
    const read = prompt - reused;
    const strip = el("div", { class: "strip", "aria-hidden": "true" });
    for (const [kind, tokens] of Object.entries({ reused, read, generated })) {
      if (tokens <= 0) continue;
      const part = el("span", { class: kind });
      part.style.flexGrow = tokens;
      strip.append(part);
    }
    // As the server measured it, or as it looked from here.
    const began = this.reading?.since ?? this.since;
    const reading = this.usage.reading ?? (this.first ? (this.first - began) / 1000 : 0);
    const saying = this.usage.saying ?? (this.first ? (performance.now() - this.first) / 1000 : 0);
    const rate = generated > 1 && saying > 0.2 ? ` at ${speed((generated - 1) / saying)}` : "";
    const part = (kind, text) => el("span", {}, el("i", { class: `swatch ${kind}`, "aria-hidden": "true" }), text);
    const parts = el("p", { class: "parts" }, part("reused", `${count(reused)} of ${of(prompt, "prompt token")} reused`));
    if (read > 0) parts.append(part("read", `${count(read)} read in ${duration(reading)}`));
    parts.append(part("generated", `${count(generated)} generated${rate}`));
    const why = read > 0 && this.prefix?.message;
    this.foot.replaceChildren(strip, parts);
    if (why) this.foot.append(el("p", { text: `Why not more reused: ${why}` }));
    const ends = { length: "It ends here because the number of tokens is used up.", context_full: "It ends here because the context is full." };
    if (ends[this.reason]) this.foot.append(el("p", { class: "notice", text: ends[this.reason] }));
  }

  /** Says what went wrong, or that it was stopped, and what can be done about it. */
  note(text, isFailure, ...actions) {
    this.foot.append(el("div", { class: isFailure ? "failure" : "notice" }, el("p", { text }), ...actions));
    this.onshow();
  }

  /** One that was said before. */
  static of(who, { thinking, text }) {
    const answer = new Answer(who);
    if (thinking) {
      answer.fold = answer.thoughts();
      answer.fold.since = undefined;
      answer.thinking = answer.fresh.thinking = thinking;
    }
    answer.text = answer.fresh.text = text;
    answer.end();
    return answer;
  }
}

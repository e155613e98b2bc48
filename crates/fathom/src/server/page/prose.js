// A model's text as it comes, with the little markup that models use. Everything becomes text nodes; links stay text.

import { el } from "./dom.js";

const INLINE = /(`[^`]+`)|(\*\*[^*]+\*\*)|(\*[^*\s][^*]*\*)/g;
const FENCE = /^\s*(```+|~~~+)\s*(\S*)/;
/** What a line may begin with that does not go on with the paragraph before. */
const MARKED = /^(#|\s*[-*+>|]|\s*\d{1,9}[.)]|\s*(`|~)|\s*$)/;
/** A line that is longer is taken in parts, so that none is laid out again and again as it grows. */
const LONGEST = 2000;

/** Code, strong and stressed parts of a line. */
function inline(into, text) {
  let from = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > from) into.append(text.slice(from, match.index));
    const [all, code, strong] = match;
    if (code) into.append(el("code", { text: all.slice(1, -1) }));
    else if (strong) into.append(el("strong", { text: all.slice(2, -2) }));
    else into.append(el("em", { text: all.slice(1, -1) }));
    from = match.index + all.length;
  }
  if (from < text.length) into.append(text.slice(from));
}

/** Text that grows at its end. What is complete is never touched again. */
export class Prose {
  constructor(into) {
    this.into = into;
    /** The line that is not complete, and where it is shown meanwhile. */
    this.tail = "";
    this.shown = document.createTextNode("");
    this.box = el("p");
    /** The block that the next line may belong to: { kind, to }. */
    this.block = undefined;
    /** The fence that ends a block of code, inside of one. */
    this.fence = "";
    /** Where the rest of a long line goes. */
    this.rest = undefined;
  }

  append(text) {
    const lines = (this.tail + text).split("\n");
    this.tail = lines.pop();
    for (const line of lines) this.line(line, true);
    while (this.tail.length > LONGEST) {
      const space = this.tail.lastIndexOf(" ", LONGEST);
      const cut = space > 0 ? space + 1 : LONGEST;
      this.line(this.tail.slice(0, cut), false);
      this.tail = this.tail.slice(cut);
    }
    this.show();
  }

  end() {
    if (this.tail) this.line(this.tail, true);
    this.tail = "";
    this.show();
  }

  /** Shows the line that is not complete where it will most likely be. */
  show() {
    if (!this.tail) return this.hide();
    let to = this.rest ?? (this.fence ? this.block.to : undefined);
    let text = this.tail;
    if (!to && this.block?.kind === "p" && !MARKED.test(text)) {
      to = this.block.to;
      text = `\n${text}`;
    }
    to ??= this.box;
    if (this.shown.parentNode !== to) {
      this.hide();
      to.append(this.shown);
      if (to === this.box) this.into.append(this.box);
    }
    this.shown.data = text;
  }

  hide() {
    this.shown.remove();
    this.box.remove();
  }

  open(kind, block, to = block) {
    this.into.append(block);
    this.block = { kind, to };
    return to;
  }

  /** A line, or the part of one that `ends` says whether it is the last. */
  line(text, ends) {
    this.hide();
    const to = this.rest ?? this.place(text);
    if (to && this.fence) to.append(ends ? `${text}\n` : text);
    else if (to && this.rest) inline(to, text);
    else if (to) this.fill(to, text);
    this.rest = ends ? undefined : (this.last ?? to);
    this.last = undefined;
  }

  /** Where a line belongs, in a block that is opened for it if need be; nowhere if there is nothing of it to see. */
  place(text) {
    const fence = FENCE.exec(text);
    if (this.fence) {
      if (!fence || fence[2] || !fence[1].startsWith(this.fence)) return this.block.to;
      this.fence = "";
      this.block = undefined;
      return undefined;
    }
    if (fence) {
      this.fence = fence[1];
      const code = el("code");
      // It may be wider than the page, and is scrolled by keyboard too.
      this.open("code", el("pre", { tabindex: 0, role: "region", "aria-label": `Code ${fence[2]}`.trim() }, code), code);
      return undefined;
    }
    if (text.trim() === "") {
      this.block = undefined;
      return undefined;
    }
    if (/^#{1,6} /.test(text)) {
      const to = this.open("heading", el("p", { class: "heading" }));
      this.block = undefined;
      return to;
    }
    if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(text)) {
      this.open("rule", el("hr"));
      this.block = undefined;
      return undefined;
    }
    const item = /^\s*([-*+]|\d{1,9}[.)]) /.exec(text);
    if (item) {
      const kind = /\d/.test(item[1]) ? "ol" : "ul";
      return this.block?.kind === kind ? this.block.to : this.open(kind, el(kind));
    }
    if (text.startsWith("|")) {
      if (this.block?.kind === "table") return this.block.to;
      const body = el("tbody");
      const about = { class: "wide", tabindex: 0, role: "region", "aria-label": "Table" };
      return this.open("table", el("div", about, el("table", {}, body)), body);
    }
    if (text.startsWith(">")) return this.block?.kind === "quote" ? this.block.to : this.open("quote", el("blockquote"));
    if (["p", "ul", "ol"].includes(this.block?.kind)) return this.block.to;
    return this.open("p", el("p"));
  }

  fill(to, text) {
    switch (this.block?.kind) {
      case "p":
        if (to.hasChildNodes()) to.append("\n");
        return inline(to, text);
      case "quote":
        if (to.hasChildNodes()) to.append("\n");
        return inline(to, text.replace(/^>\s?/, ""));
      case "ul":
      case "ol":
        return this.item(to, text);
      case "table":
        return this.row(to, text);
      default:
        return inline(to, text.replace(/^#{1,6} /, ""));
    }
  }

  item(list, text) {
    const [marker, indent, sign] = /^(\s*)([-*+]|\d{1,9}[.)]) /.exec(text) ?? [];
    if (marker === undefined) {
      // A line of the item before.
      this.last = list.lastChild;
      this.last.append("\n");
      return inline(this.last, text.trim());
    }
    const level = Math.min(3, Math.floor(indent.replaceAll("\t", "    ").length / 2));
    const item = el("li", { class: level > 0 && `level${level}`, value: list.tagName === "OL" && parseInt(sign, 10) });
    list.append(item);
    this.last = item;
    return inline(item, text.slice(marker.length));
  }

  row(body, text) {
    const cells = text.trim().replace(/^\||\|$/g, "").split("|");
    if (cells.every((cell) => /^\s*:?-+:?\s*$/.test(cell))) return;
    const kind = body.hasChildNodes() ? "td" : "th";
    const row = el("tr");
    for (const cell of cells) {
      const made = el(kind, kind === "th" ? { scope: "col" } : {});
      inline(made, cell.trim());
      row.append(made);
    }
    body.append(row);
    this.last = row.lastChild;
  }
}

// Questions that wait for an answer.

import { el } from "./dom.js";

let last = 0;

/**
 * Asks, and gives the values of the fields by their names, or nothing if it was called off. `yes` is what the button says that
 * does it; with `danger` the other one has the focus.
 */
export function ask({ title, text, yes, danger = false, fields = [] }) {
  last += 1;
  const id = `ask-${last}`;
  const inputs = fields.map(({ label, hint, ...about }) => {
    const field = `${id}-${about.name}`;
    const input = el("input", { ...about, id: field, "aria-describedby": hint && `${field}-hint`, autocomplete: "off" });
    return el("p", {}, el("label", { for: field, text: label }), input, hint && el("small", { id: `${field}-hint`, text: hint }));
  });
  const no = el("button", { type: "button", text: "Cancel", autofocus: danger });
  const go = el("button", { class: danger ? "danger" : "main", text: yes });
  const form = el(
    "form",
    { method: "dialog" },
    el("h2", { id, text: title }),
    text && el("p", { text }),
    ...inputs,
    el("p", { class: "row end" }, no, go),
  );
  const dialog = el("dialog", { "aria-labelledby": id }, form);
  document.body.append(dialog);
  return new Promise((resolve) => {
    let values;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      values = Object.fromEntries(new FormData(form));
      dialog.close();
    });
    no.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(values);
    });
    dialog.showModal();
  });
}

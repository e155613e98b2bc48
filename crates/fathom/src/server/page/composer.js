// Where a question is written: its words, its files, and how it is to be answered.

import { action } from "./answer.js";
import { Failure } from "./api.js";
import { $, el, setText } from "./dom.js";
import { bytes } from "./words.js";

/** The largest file, in bytes: some four million tokens of English. */
const LARGEST = 16 << 20;

let files = [];

/** What a question is to the model: each file under its name, then the words. */
export const whole = ({ text, files: attached }) =>
  [...attached.map((file) => `# ${file.name}\n\n${file.text}`), text].filter(Boolean).join("\n\n");

/** The question that is written, if there is one; nothing is left of it here. */
export function take() {
  const text = $("words").value;
  if (!text.trim() && !files.length) return undefined;
  const asked = { text, files };
  $("words").value = "";
  files = [];
  chips();
  return asked;
}

/** Puts a question back. */
export function restore(asked) {
  $("words").value = asked.text;
  files = asked.files;
  chips();
  $("words").focus();
}

/** Offers what a server and a kind of conversation can do. */
export function offer(server, isSession) {
  $("tools").disabled = !server.tools || isSession;
  const why = isSession ? "Sessions take no tools." : server.tools ? "" : "This model cannot call tools.";
  setText($("tools-why"), why);
  const select = $("effort");
  const was = select.value;
  const named = { none: "off" };
  const choices = isSession ? ["none", "on"] : ["none", ...server.efforts];
  const usual = el("option", { value: "", text: "Thinking as usual" });
  select.replaceChildren(usual, ...choices.map((value) => el("option", { value, text: `Thinking ${named[value] ?? value}` })));
  select.value = choices.includes(was) ? was : "";
}

/** The options of a request that are set. */
export function options(isSession) {
  const number = (id) => ($(id).value === "" ? undefined : $(id).valueAsNumber);
  const all = { max_tokens: number("max-tokens"), temperature: number("temperature"), seed: number("seed") };
  const effort = $("effort").value;
  if (isSession) return { ...all, thinking: effort === "" ? undefined : effort !== "none" };
  return { ...all, reasoning_effort: effort || undefined, tools: tools() };
}

/** The tools of the field for them: functions as OpenAI has them, or bare. */
function tools() {
  const text = $("tools").value.trim();
  if (!text || $("tools").disabled) return undefined;
  let all;
  try {
    all = JSON.parse(text);
  } catch (error) {
    throw new Failure(`The tools are not valid JSON: ${error.message}`);
  }
  if (!Array.isArray(all)) throw new Failure("The tools must be a JSON array of functions.");
  return all.map((tool) => (tool?.function ? tool : { type: "function", function: tool }));
}

/** Shows the files that go along. */
function chips() {
  const all = files.map((file) => {
    const gone = () => {
      files = files.filter((other) => other !== file);
      chips();
      $("words").focus();
    };
    const about = { "aria-label": `Remove ${file.name}` };
    return el("li", {}, `${file.name} (${bytes(file.text.length)}) `, action("×", gone, about));
  });
  $("chips").replaceChildren(...all);
}

async function attach(chosen) {
  const problems = [];
  for (const file of chosen) {
    try {
      if (file.size > LARGEST) throw new Failure(`more than ${bytes(LARGEST)}`);
      const text = new TextDecoder("utf-8", { fatal: true }).decode(await file.arrayBuffer());
      files = [...files, { name: file.name, text }];
    } catch (error) {
      const why = error instanceof Failure ? error.message : "not UTF-8 text";
      problems.push(`${file.name}: ${why}`);
    }
  }
  chips();
  setText($("file-problem"), problems.join(". "));
}

/** Connects what is on the page; `submit` is called when a question is to be sent. */
export function start(submit) {
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    submit();
  });
  $("words").addEventListener("keydown", (event) => {
    // On a phone, Enter is how a new line is made.
    const types = matchMedia("(pointer: coarse)").matches;
    if (event.key !== "Enter" || event.shiftKey || event.isComposing || types) return;
    event.preventDefault();
    submit();
  });
  $("attach").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    await attach([...$("files").files]);
    $("files").value = "";
    $("words").focus();
  });
}

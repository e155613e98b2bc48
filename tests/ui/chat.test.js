import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { browser, open, say, serve } from "./fathom.js";
import { DONE, breaks, calls, comment, ends, says, front, thinks, wait } from "./speaker.js";

let server;
let proxy;
let chrome;
before(async () => {
  server = await serve();
  proxy = await front(server.address);
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  proxy?.stop();
  await server?.stop();
});

const fresh = () => open(chrome, proxy.address);
const COMPLETIONS = "/v1/chat/completions";

test("a conversation by keyboard alone", async () => {
  const page = await fresh();
  // The first thing that Tab reaches leads to where one writes.
  await page.keyboard.press("Tab");
  await page.keyboard.press("Enter");
  await page.keyboard.type("The code of Anna is 47110.");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("What is the code of Anna?");
  await page.keyboard.press("Enter");
  await page.locator(".turn.model .prose", { hasText: "47110" }).waitFor();
  await page.locator("#send").waitFor();
  assert.match(await page.locator("#phase").textContent(), /^Answered: \d+ tokens$/);
  assert.match(await page.locator(".foot").textContent(), /0 of \d+ prompt tokens reused.*read in.*generated/);
  assert.equal(await page.evaluate(() => document.activeElement.id), "words");
  // The second time the first turn is there already.
  await page.keyboard.type("And once more?");
  await page.keyboard.press("Enter");
  await page.locator(".turn.model").nth(1).locator(".foot p").first().waitFor();
  const reused = await page.locator(".turn.model").nth(1).locator(".foot").textContent();
  assert.match(reused, /[1-9]\d* of \d+ prompt tokens reused/);
  // Depths go up.
  const depths = (await page.locator(".depth").allTextContents()).map((text) => Number(text.replaceAll(",", "")));
  assert.deepEqual(depths, [...depths].sort((a, b) => a - b));
  assert.equal(depths.length, 4);
  assert.deepEqual(page.problems, []);
});

test("a long prompt shows how far it is, and can be stopped", async () => {
  const page = await fresh();
  const text = Array.from({ length: 5000 }, (_, i) => `Line ${i} says nothing new about ${i * i}. `).join("");
  await page.setInputFiles("#files", { name: "book.txt", mimeType: "text/plain", buffer: Buffer.from(text) });
  await page.locator("#chips li", { hasText: "book.txt" }).waitFor();
  await page.fill("#words", "What is it about?");
  await page.keyboard.press("Enter");
  await page.locator(".wait", { hasText: /[\d,]+\sof\s[\d,]+\stokens · [\d,]+\/s · .+\sleft/ }).waitFor();
  await page.locator("#now-reading li", { hasText: /left/ }).waitFor();
  assert.match(await page.locator("#phase").textContent(), /^Reading the prompt, \d+ %$/);
  await page.keyboard.press("Escape");
  await page.locator(".notice", { hasText: "Stopped" }).waitFor();
  // The server reads on, and can be told not to.
  const left = page.locator("#now-reading li", { hasText: "its client has left" });
  await left.waitFor();
  await left.getByRole("button").click();
  await page.locator("#now-reading-none").waitFor();
  // Once more: what was read is there.
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".wait", { hasText: "were there already" }).waitFor();
  await page.locator(".foot .parts").waitFor({ timeout: 240_000 });
  assert.match(await page.locator(".foot").textContent(), /[1-9][\d,]* of [\d,]+ prompt tokens reused/);
  assert.deepEqual(page.problems, []);
});

test("files that are no text are refused by name", async () => {
  const page = await fresh();
  await page.setInputFiles("#files", [
    { name: "picture.png", mimeType: "image/png", buffer: Buffer.from([0x89, 0x50, 0xff, 0xfe]) },
    { name: "words.txt", mimeType: "text/plain", buffer: Buffer.from("words") },
  ]);
  await page.locator("#file-problem", { hasText: "picture.png: not UTF-8 text" }).waitFor();
  await page.getByRole("button", { name: "Remove words.txt" }).click();
  assert.equal(await page.locator("#chips li").count(), 0);
});

test("thinking folds, and goes along with the next turn", async () => {
  const page = await fresh();
  const answer = [comment("queued, 2 ahead"), wait(1500), thinks("Well… "), thinks("let me see."), wait(1500), says("Yes."), ends(), DONE];
  const { asked, silent } = proxy.speak(COMPLETIONS, answer);
  await page.selectOption("#effort", "max");
  await page.fill("#words", "Is it so?");
  await page.keyboard.press("Enter");
  await page.locator(".wait", { hasText: "2 requests ahead" }).waitFor();
  await page.locator("details.thinking[open]", { hasText: "let me see" }).waitFor();
  await page.locator("details.thinking:not([open])", { hasText: "Thought for" }).waitFor();
  await page.locator(".foot", { hasText: "60 of 100 prompt tokens reused" }).waitFor();
  assert.equal(asked[0].reasoning_effort, "max");
  // It opens by keyboard.
  await page.locator("details.thinking summary").focus();
  await page.keyboard.press("Enter");
  await page.locator("details.thinking[open]").waitFor();
  await say(page, "Sure?");
  assert.equal(asked[1].messages[1].reasoning_content, "Well… let me see.");
  silent();
});

test("why no more was reused is said", async () => {
  const page = await fresh();
  const prefix = { event: "prefix", data: { reused_tokens: 60, reason: "differs", message: "matched 60 tokens <b>of</b> session x" } };
  const { silent } = proxy.speak(COMPLETIONS, [says("Yes."), ends(), prefix, DONE]);
  await say(page, "Is it so?");
  await page.locator(".foot", { hasText: "Why not more reused: matched 60 tokens <b>of</b> session x" }).waitFor();
  silent();
});

test("tools are called, and get their results back", async () => {
  const page = await fresh();
  await page.route("**/v1/status", async (route) => {
    const response = await route.fetch();
    await route.fulfill({ json: { ...(await response.json()), tools: true } });
  });
  await page.reload();
  await page.locator("#more summary").click();
  await page.locator("#tools:enabled").fill("[{");
  await say(page, "Weather?", ".failure");
  assert.match(await page.locator(".foot .failure").textContent(), /not valid JSON/);
  await page.locator("#tools").fill('[{"name": "weather", "parameters": {"type": "object"}}]');
  const first = proxy.speak(COMPLETIONS, [
    says("Let me look."), calls(0, "weather", '{"city": '), calls(0, undefined, '"Kiel"}'), calls(1, "weather", '{"city":"Bonn"}'),
    ends("tool_calls"), DONE,
  ]);
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".call", { hasText: '"city": "Kiel"' }).waitFor();
  assert.deepEqual(first.asked[0].tools, [{ type: "function", function: { name: "weather", parameters: { type: "object" } } }]);
  first.silent();
  const second = proxy.speak(COMPLETIONS, [says("Rain."), ends(), DONE]);
  await page.getByLabel("Result of weather").nth(0).fill("rain");
  await page.getByLabel("Result of weather").nth(1).fill("sun");
  await page.getByRole("button", { name: "Send the results" }).click();
  await page.locator(".prose", { hasText: "Rain." }).waitFor();
  const { messages } = second.asked[0];
  assert.deepEqual(messages.map((one) => one.role), ["user", "assistant", "tool", "tool"]);
  assert.deepEqual(messages[1].tool_calls[0], { id: "call_0", type: "function", function: { name: "weather", arguments: '{"city": "Kiel"}' } });
  assert.deepEqual(messages[3], { role: "tool", tool_call_id: "call_1", content: "sun" });
  second.silent();
  assert.deepEqual(page.problems, []);
});

test("what only looks like calls is said to be none", async () => {
  const page = await fresh();
  const looks = '<｜DSML｜tool_calls>\n<｜DSML｜invoke name="weat';
  const steps = [says(looks), ends("stop", undefined, { malformed_tool_calls: true }), DONE];
  const { silent } = proxy.speak(COMPLETIONS, steps);
  await say(page, "Weather?");
  silent();
  await page.locator(".prose", { hasText: "invoke" }).waitFor();
  assert.match(await page.locator(".foot .notice").textContent(), /looks like tool calls and is none/);
  assert.equal(await page.locator(".call").count(), 0);
  // Others are not said to be.
  const other = proxy.speak(COMPLETIONS, [says("Rain."), ends(), DONE]);
  await say(page, "And now?");
  other.silent();
  assert.equal(await page.locator(".foot .notice").count(), 1);
  assert.deepEqual(page.problems, []);
});

test("what a model says is text, whatever it is", async () => {
  const page = await fresh();
  const bad = '<img src=x onerror="window.bad = 1"><script>window.bad = 1</script> [link](javascript:window.bad=1)';
  const text = `# Title\n\nSome **strong** and \`code\` words.\n- one\n- two\n\n\`\`\`html\n${bad}\n\`\`\`\n\n| a | b |\n|---|---|\n| 1 | ${bad} |\n\n${bad}`;
  // In the smallest parts, and in one.
  for (const parts of [text.split(""), [text]]) {
    const { silent } = proxy.speak(COMPLETIONS, [thinks(bad), ...parts.map(says), calls(0, bad, bad), ends(), DONE]);
    await page.getByRole("button", { name: "New chat" }).click();
    await say(page, bad);
    silent();
    const shown = page.locator(".turn.model .prose").nth(1);
    assert.equal(await page.locator("#log").locator("img, script, a, iframe").count(), 0);
    assert.equal(await page.evaluate(() => globalThis.bad), undefined);
    assert.equal(await shown.locator("pre code").textContent(), `${bad}\n`);
    assert.deepEqual(await shown.locator("li").allTextContents(), ["one", "two"]);
    assert.deepEqual(await shown.locator("td").allTextContents(), ["1", bad]);
    assert.equal(await shown.locator("p").last().textContent(), bad);
    assert.equal(await shown.locator("strong").textContent(), "strong");
  }
  assert.deepEqual(page.problems, []);
});

test("a long answer stays quick", async () => {
  const page = await fresh();
  await page.evaluate(() => {
    globalThis.tasks = [];
    new PerformanceObserver((list) => globalThis.tasks.push(...list.getEntries().map((one) => one.duration))).observe({ type: "longtask" });
  });
  const line = "Some **words** that are `said` again and again, and more of them, until it is enough.\n";
  const part = line.repeat(4);
  // 1.4 MB, a third of it in one block of code.
  const parts = Array.from({ length: 4000 }, (_, i) => [says(i === 1000 ? "\n```\n" : i === 2300 ? "\n```\n" : `${part}${i % 5 ? "" : "\n"}`), i % 8 ? [] : wait(8)]);
  const { silent } = proxy.speak(COMPLETIONS, [parts.flat(2), ends(), DONE]);
  const start = Date.now();
  await say(page, "Talk.", ".foot .parts", 120_000);
  const seconds = (Date.now() - start) / 1000;
  silent();
  const length = await page.evaluate(() => document.querySelector(".turn.model .body").textContent.length);
  assert.ok(length > 1_200_000, `${length} characters are there`);
  const longest = Math.max(0, ...(await page.evaluate(() => globalThis.tasks)));
  console.log(`# ${length} characters in ${seconds.toFixed(1)} s, longest task ${longest.toFixed(0)} ms`);
  assert.ok(longest < 1000, `a task took ${longest} ms`);
  // Typing is not held up by what is there.
  const typed = await page.evaluate(async () => {
    const words = document.getElementById("words");
    const begin = performance.now();
    for (const letter of "some words") {
      words.value += letter;
      words.dispatchEvent(new Event("input", { bubbles: true }));
      words.getBoundingClientRect();
    }
    return performance.now() - begin;
  });
  assert.ok(typed < 500, `ten letters took ${typed} ms`);
});

test("too much is told, with the time after which to try again", async () => {
  const page = await fresh();
  const refused = { error: { message: "This key has asked too often; try again in 2 s.", code: "rate_limited" } };
  const { silent } = proxy.speak(COMPLETIONS, refused, { status: 429, headers: { "retry-after": "2" } });
  await say(page, "Hello", ".failure");
  await page.locator(".failure", { hasText: "asked too often" }).waitFor();
  const again = page.getByRole("button", { name: /^Try again/ });
  assert.ok(await again.isDisabled());
  silent();
  await page.locator(".failure button:enabled").waitFor();
  await again.click();
  await page.locator(".prose", { hasText: "Hello!" }).waitFor();
  assert.equal(await page.locator(".turn").count(), 2);
});

test("what was said before the connection broke stays", async () => {
  const page = await fresh();
  const { silent } = proxy.speak(COMPLETIONS, [says("Half an ans"), wait(200), breaks]);
  await say(page, "Hello", ".failure");
  assert.match(await page.locator(".turn.model").textContent(), /Half an ans.*connection.*lost/s);
  silent();
  await say(page, "Hello");
  assert.equal(await page.locator(".turn").count(), 4);
});

test("a server that goes away and comes back", async () => {
  const own = await serve();
  const page = await open(chrome, own.address);
  await own.stop();
  await page.locator("#trouble", { hasText: "No connection to the server" }).waitFor();
  await say(page, "Hello", ".failure");
  const again = await serve({ port: own.port });
  await page.locator("#trouble").waitFor({ state: "hidden", timeout: 40_000 });
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".prose", { hasText: "Hello!" }).waitFor();
  await again.stop();
});

test("a question can be changed", async () => {
  const page = await fresh();
  await say(page, "Hello");
  await say(page, "Hello again");
  await page.locator(".turn.user").nth(1).getByRole("button", { name: "Edit" }).click();
  assert.equal(await page.inputValue("#words"), "Hello again");
  assert.equal(await page.locator(".turn").count(), 2);
  await say(page, "Something else");
  assert.equal(await page.locator(".turn").count(), 4);
});

import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { browser, open, say, serve } from "./fathom.js";
import { breaks, front, wait } from "./speaker.js";

let server;
let proxy;
let chrome;
before(async () => {
  server = await serve({ store: true });
  proxy = await front(server.address);
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  proxy?.stop();
  await server?.stop();
});

const names = (page) => page.locator("#sessions-list .name span").allTextContents();
const title = (page, text) => page.locator("#chat-title", { hasText: new RegExp(`^${text}$`) }).waitFor();

async function create(page, name) {
  await page.fill("#sessions-new-name", name);
  await page.keyboard.press("Enter");
  await title(page, name);
}

test("a session grows, forks, goes back and ends, by keyboard", async () => {
  const page = await open(chrome, server.address);
  await create(page, "log");
  await say(page, "The code of Anna is 47110. What is the code of Anna?");
  await say(page, "Hello");
  const said = await page.locator(".turn .body").allTextContents();
  assert.match(said[1], /47110/);
  // Loaded again, the same session is open, and says the same.
  await page.reload();
  await title(page, "log");
  await page.locator(".turn").nth(3).waitFor();
  const shown = await page.locator(".turn .body").allTextContents();
  assert.deepEqual(shown.map((text) => text.split("\n")[0]).slice(0, 1), [said[0]]);
  assert.match(shown[1], /47110/);
  const depths = await page.locator(".depth").allTextContents();

  // A fork after the first answer.
  await page.locator(".turn.model").first().getByRole("button", { name: "Fork here" }).press("Enter");
  await page.locator("dialog input").waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.name), "name");
  await page.keyboard.type("other");
  await page.keyboard.press("Enter");
  await title(page, "other");
  assert.equal(await page.locator(".turn").count(), 2);
  await page.locator(".tree .tree .name", { hasText: "other" }).waitFor();
  const last = await say(page, "The code of Bob is 12345. What is the code of Anna?");
  assert.match(await last.locator(".foot").textContent(), new RegExp(`${depths[2]} of \\d+ prompt tokens reused`));
  assert.match(await last.textContent(), /47110/);

  // Back to before the second question, which is there to be said otherwise.
  await page.locator(".turn.user").nth(1).getByRole("button", { name: "Rewind to before this" }).press("Enter");
  await page.locator("dialog", { hasText: "Rewind other?" }).waitFor();
  // It is not done by a careless Enter.
  await page.keyboard.press("Enter");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.equal(await page.locator(".turn").count(), 4);
  await page.locator(".turn.user").nth(1).getByRole("button", { name: "Rewind to before this" }).press("Enter");
  await page.getByRole("button", { name: "Rewind", exact: true }).and(page.locator("dialog button")).press("Enter");
  await page.locator(".turn").nth(2).waitFor({ state: "detached" });
  await page.waitForFunction(() => document.getElementById("words").value.includes("code of Bob"));
  await say(page, "Hello");

  // Back to a position, from the list.
  await page.getByRole("button", { name: "More of other" }).press("Enter");
  await page.locator(".more", { hasText: "Forked from log at token" }).waitFor();
  await page.locator(".more").getByRole("button", { name: "Rewind" }).press("Enter");
  await page.locator("dialog input[type=number]").fill("0");
  await page.keyboard.press("Enter");
  await page.locator(".tree .tree .name", { hasText: "0 tokens" }).waitFor();

  // And away, once that is confirmed.
  await page.locator(".more").getByRole("button", { name: "Delete" }).press("Enter");
  await page.locator("dialog", { hasText: "Delete other?" }).waitFor();
  await page.keyboard.press("Escape");
  await page.locator("dialog").waitFor({ state: "detached" });
  assert.deepEqual(await names(page), ["log", "other"]);
  await page.locator(".more").getByRole("button", { name: "Delete" }).press("Enter");
  await page.locator("dialog").getByRole("button", { name: "Delete" }).press("Enter");
  await page.locator(".name", { hasText: "other" }).waitFor({ state: "detached" });
  await title(page, "Chat");
  assert.deepEqual(page.problems, []);
});

test("a first question can be taken back", async () => {
  const page = await open(chrome, server.address);
  await create(page, "first");
  await say(page, "Hello");
  await page.reload();
  await page.locator(".turn.user").getByRole("button", { name: "Rewind to before this" }).click();
  await page.locator("dialog").getByRole("button", { name: "Rewind" }).click();
  await page.locator(".turn").first().waitFor({ state: "detached" });
  const answer = await say(page, "Hello");
  assert.match(await answer.textContent(), /Hello!/);
});

test("an answer of a session's that is stopped belongs to it", async () => {
  const page = await open(chrome, server.address);
  await create(page, "cut");
  const text = Array.from({ length: 2500 }, (_, i) => `Line ${i} says nothing new about ${i * i}. `).join("");
  await page.setInputFiles("#files", { name: "book.txt", mimeType: "text/plain", buffer: Buffer.from(text) });
  await page.locator("#chips li").waitFor();
  await page.fill("#words", "What is it about?");
  await page.keyboard.press("Enter");
  await page.locator(".wait", { hasText: /left/ }).waitFor();
  await page.locator("#now-reading li", { hasText: /left/ }).waitFor();
  await page.getByRole("button", { name: "Stop", exact: true }).and(page.locator("#stop")).click();
  await page.locator(".notice", { hasText: "Stopped" }).waitFor();
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".foot .parts").waitFor({ timeout: 120_000 });
  await page.reload();
  await page.getByRole("button", { name: /^Show all/ }).waitFor();
  await page.locator(".turn").nth(1).waitFor();
});

test("an answer that is stopped stays, as far as it came", async () => {
  const page = await open(chrome, proxy.address);
  await create(page, "half");
  await say(page, "Hello");
  const { silent } = proxy.speak("/v1/sessions/half/generate", [{ tokens: [1], thinking: "", text: "Half a sent" }, wait(5000)]);
  await page.fill("#words", "Again");
  await page.keyboard.press("Enter");
  await page.locator(".prose", { hasText: "Half a sent" }).waitFor();
  await page.keyboard.press("Escape");
  await page.locator(".notice", { hasText: "Stopped." }).waitFor();
  silent();
  const half = page.locator(".turn.model").nth(1);
  await half.getByRole("button", { name: "Fork here" }).waitFor();
  assert.match(await half.textContent(), /Half a sent/);
  // One that breaks off by itself may have gone on without the page.
  const broken = proxy.speak("/v1/sessions/half/generate", [{ tokens: [1], thinking: "", text: "Hal" }, wait(300), breaks]);
  await say(page, "Again", ".failure");
  broken.silent();
  await page.getByRole("button", { name: "Show what the session has" }).click();
  await page.locator(".turn").nth(2).waitFor({ state: "detached" });
});

test("what the server refuses is said", async () => {
  const page = await open(chrome, server.address);
  await create(page, "twice");
  await page.fill("#sessions-new-name", "twice");
  await page.keyboard.press("Enter");
  await page.locator("#sessions-problem", { hasText: "already" }).waitFor();
  // One that is gone.
  await page.goto(`${server.address}/#chat/nobody`);
  await page.locator("#log .failure", { hasText: "no session" }).waitFor();
  await title(page, "Chat");
});

test("where nothing is stored the page says so", async () => {
  const own = await serve();
  const page = await open(chrome, own.address);
  await page.locator("#sessions-kept", { hasText: "--store" }).waitFor();
  await own.stop();
});

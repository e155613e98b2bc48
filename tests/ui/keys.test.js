import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { browser, open, say, serve } from "./fathom.js";

let server;
let chrome;
before(async () => {
  server = await serve({ store: true, keys: "one first-key\ntwo second-key\n", args: ["--key-rate", "3"] });
  chrome = await browser();
});
after(async () => {
  await chrome?.close();
  await server?.stop();
});

test("a key opens what is the key's", async () => {
  const page = await open(chrome, server.address, { ready: false });
  await page.locator("#trouble", { hasText: "This server asks for an API key." }).waitFor();
  assert.equal(await page.evaluate(() => document.activeElement.id), "key");
  await page.keyboard.type("wrong");
  await page.keyboard.press("Enter");
  await page.locator("#trouble", { hasText: "does not know this key" }).waitFor();
  await page.fill("#key", "first-key");
  await page.keyboard.press("Enter");
  await page.locator("body:not(.unknown)").waitFor();
  await page.locator("#key-form").waitFor({ state: "hidden" });
  await page.fill("#sessions-new-name", "mine");
  await page.keyboard.press("Enter");
  await page.locator(".name", { hasText: "mine" }).waitFor();
  await say(page, "Hello");
  // The key is in this tab's storage and nowhere else.
  const kept = await page.evaluate(() => [JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie, location.href]);
  assert.deepEqual(kept.map((text) => text.includes("first-key")), [true, false, false, false]);
  await page.reload();
  await page.locator("#chat-title", { hasText: "mine" }).waitFor();
  // Another key, another's sessions; and none of what was on the page.
  await page.getByRole("button", { name: "API key" }).click();
  await page.fill("#key", "second-key");
  await page.keyboard.press("Enter");
  await page.locator("#sessions-empty").waitFor();
  assert.equal(await page.locator(".turn").count(), 0);
  await page.getByRole("button", { name: "API key" }).click();
  await page.getByRole("button", { name: "Forget" }).click();
  await page.locator("#trouble", { hasText: "asks for an API key" }).waitFor();
  assert.equal(await page.evaluate(() => sessionStorage.length), 0);
  assert.deepEqual(page.problems, []);
});

test("a key's limit is told", async () => {
  const page = await open(chrome, server.address, { ready: false });
  await page.fill("#key", "second-key");
  await page.keyboard.press("Enter");
  await page.locator("body:not(.unknown)").waitFor();
  for (let i = 0; i < 3; i += 1) await say(page, "Hello");
  await say(page, "Hello", ".failure");
  await page.locator(".failure", { hasText: "asked too often" }).waitFor();
  assert.match(await page.locator(".failure button").textContent(), /Try again in \d+ s/);
});

// Takes the pictures of docs/, of what the embedded model really does: node shots.js [FOLDER]

import { join, resolve } from "node:path";
import { browser, here, open, say, serve } from "./fathom.js";

const folder = resolve(process.argv[2] ?? join(here, "../../docs"));

/** A long text with something to find in it. */
const text = (lines, seed) =>
  Array.from({ length: lines }, (_, i) =>
    i === Math.floor(lines / 3) ? "The code of Clara is 80442. " : `Day ${i} of voyage ${seed}: ${(i * 7919 + seed) % 97} miles. `,
  ).join("");

const server = await serve({ store: true });
const chrome = await browser();
const post = (path, body) =>
  fetch(`${server.address}${path}`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
/** Reads a long prompt, for whoever waits for it. */
const read = (seed, lines) =>
  post("/v1/chat/completions", { model: "demo", messages: [{ role: "user", content: text(lines, seed) }], max_tokens: 4 }).catch(() => {});

try {
  await post("/v1/sessions", { name: "logbook" });
  await post("/v1/sessions/logbook/append", { messages: [{ role: "user", content: `${text(1500, 1)}\nWhat is the code of Clara?` }] });
  await post("/v1/sessions/logbook/generate", { max_tokens: 40, temperature: 0 });
  for (const name of ["first-mate", "purser"]) await post("/v1/sessions/logbook/fork", { name });
  await post("/v1/sessions/purser/generate", { messages: [{ role: "user", content: "Hello" }], temperature: 0 });
  await post("/v1/sessions/purser/fork", { name: "purser-2" });
  await post("/v1/sessions", { name: "notes" });
  await post("/v1/sessions/notes/generate", { messages: [{ role: "user", content: "Hello" }], temperature: 0 });
  await post("/v1/sessions/first-mate/pin", { pinned: true });
  for (const [name, size, scheme] of [
    ["page-light", { width: 1280, height: 800 }, "light"],
    ["page-dark", { width: 1280, height: 800 }, "dark"],
    ["page-phone", { width: 390, height: 800 }, "dark"],
  ]) {
    const page = await open(chrome, server.address, { scheme, hash: "#chat/first-mate", size: name === "page-phone" ? "phone" : "desktop" });
    await page.setViewportSize(size);
    await page.locator(".turn").nth(1).waitFor();
    if (name === "page-light") await say(page, "The code of Bob is 31337. What is the code of Clara?");
    const seeds = { "page-light": [2, 3], "page-dark": [4, 5], "page-phone": [6, 7] }[name];
    const reading = [read(seeds[0], 12000), new Promise((done) => setTimeout(done, 700)).then(() => read(seeds[1], 9000))];
    if (name === "page-phone") await page.click("nav a[href='#now']");
    await page.locator("#now-reading li").nth(1).waitFor();
    await page.waitForTimeout(2500);
    if (name !== "page-phone") await page.locator("#words").focus();
    await page.screenshot({ path: join(folder, `${name}.png`) });
    await page.context().close();
    for (const { id } of (await (await fetch(`${server.address}/v1/prefills`)).json()).data) {
      await fetch(`${server.address}/v1/prefills/${id}`, { method: "DELETE" });
    }
    await Promise.all(reading);
  }
} finally {
  await chrome.close();
  await server.stop();
}

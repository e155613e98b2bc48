// Servers and browsers for the tests.

import { spawn } from "node:child_process";
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import axe from "axe-core";
import { chromium } from "playwright-core";

export const here = dirname(fileURLToPath(import.meta.url));
const repository = resolve(here, "../..");
const program = process.env.FATHOM ?? join(repository, "target/release/fathom");
/** A folder whose files are shown instead of those in the program: to try a change without building. */
const files = process.env.FATHOM_PAGE && resolve(process.env.FATHOM_PAGE);

/** Starts `fathom serve` with the embedded model on a free port; gives its address and a way to end it. */
export async function serve({ keys, store = false, args = [], port = 0 } = {}) {
  if (!existsSync(program)) throw new Error(`${program} is not there: cargo build --release, or name it in FATHOM`);
  const folder = mkdtempSync(join(tmpdir(), "fathom-ui-"));
  const flags = ["serve", "--port", String(port), ...args];
  if (keys) {
    writeFileSync(join(folder, "keys"), keys);
    flags.push("--keys", join(folder, "keys"));
  }
  if (store) flags.push("--store", join(folder, "store"));
  const child = spawn(program, flags, { stdio: ["ignore", "ignore", "pipe"] });
  const address = await new Promise((resolve_, reject) => {
    let told = "";
    child.stderr.on("data", (bytes) => {
      told += bytes;
      const found = /at (http:\/\/[^/]+)\/v1/.exec(told);
      if (found) resolve_(found[1]);
    });
    child.once("exit", (code) => reject(new Error(`fathom serve ended with ${code}: ${told}`)));
  });
  const ended = new Promise((done) => child.once("exit", done));
  const stop = async () => {
    child.kill("SIGKILL");
    await ended;
    rmSync(folder, { recursive: true, force: true });
  };
  return { address, stop, port: Number(new URL(address).port) };
}

/** Debian's Chromium, or what CHROMIUM names. */
export const browser = () =>
  chromium.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: ["--no-sandbox", "--disable-gpu"] });

export const sizes = { phone: { width: 360, height: 740 }, desktop: { width: 1600, height: 900 } };

/** A page at an address, whose errors are kept in `page.problems`. */
export async function open(chrome, address, { size = "desktop", scheme = "light", hash = "", ready = true } = {}) {
  const context = await chrome.newContext({
    viewport: sizes[size],
    colorScheme: scheme,
    hasTouch: size === "phone",
    isMobile: size === "phone",
    deviceScaleFactor: 1,
    reducedMotion: "reduce",
  });
  const page = await context.newPage();
  page.setDefaultTimeout(20_000);
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (message) => {
    // That a request was refused is told on the page.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.problems.push(message.text());
  });
  if (files) {
    await page.route(/\/(page\/[^/]+)?$/, async (route) => {
      const name = basename(new URL(route.request().url()).pathname) || "index.html";
      if (!existsSync(join(files, name))) return route.fallback();
      const kinds = { html: "text/html", css: "text/css", svg: "image/svg+xml", js: "text/javascript" };
      const policy =
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; " +
        "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
      return route.fulfill({
        body: readFileSync(join(files, name)),
        headers: { "content-type": `${kinds[name.split(".").pop()]}; charset=utf-8`, "content-security-policy": policy },
      });
    });
  }
  await page.goto(`${address}/${hash}`);
  if (ready) await page.locator("body:not(.unknown)").waitFor();
  return page;
}

/** What axe finds wrong with a page. */
export async function accessibility(page) {
  await page.evaluate(axe.source);
  const { violations } = await page.evaluate(() => globalThis.axe.run(document, { resultTypes: ["violations"] }));
  return violations.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.map((node) => node.html.slice(0, 160)).join(" | ")}`);
}

/** Says something in the chat, and waits for what is to come of it: an answer, unless it is said otherwise. */
export async function say(page, text, comes = ".foot .parts", timeout = 30_000) {
  const turns = await page.locator(".turn.model").count();
  await page.fill("#words", text);
  await page.locator("#words").press("Enter");
  const last = page.locator(".turn.model").nth(turns);
  await last.locator(comes).waitFor({ timeout });
  await page.locator("#send").waitFor();
  return last;
}

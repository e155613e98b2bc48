import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { accessibility, browser, open, say, serve, sizes } from "./fathom.js";
import { DONE, calls, ends, says, front, thinks } from "./speaker.js";

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

const RICH = "# Title\n\nWords with `code`, **strong** and *stressed*.\n\n> quoted\n\n- one\n- two\n\n```rust\nfn main() {}\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n";

/** Whether the page is wider than its window. */
const overflows = (page) => page.evaluate(() => document.documentElement.scrollWidth > innerWidth);

for (const size of Object.keys(sizes)) {
  for (const scheme of ["light", "dark"]) {
    test(`nothing is wrong with it: ${size}, ${scheme}`, async () => {
      const page = await open(chrome, proxy.address, { size, scheme });
      const look = async (what) => {
        assert.deepEqual(await accessibility(page), [], what);
        assert.equal(await overflows(page), false, what);
      };
      const go = async (part) => {
        if (size === "phone") await page.click(`nav a[href^="#${part}"]`);
      };
      // Where a finger writes, Enter makes a line.
      const send = async (text, comes) => {
        if (size !== "phone") return say(page, text, comes);
        await page.fill("#words", text);
        await page.click("#send");
        return page.locator(".turn.model").last().locator(comes ?? ".foot .parts").waitFor();
      };
      await look("empty");
      const { silent } = proxy.speak("/v1/chat/completions", [thinks("Hm."), says(RICH), calls(0, "weather", "{}"), ends("tool_calls"), DONE]);
      await page.locator("#more summary").click();
      await send("Say all of it.");
      silent();
      await page.locator("details.thinking summary").click();
      await look("an answer");
      await page.locator("#more summary").click();
      await page.route("**/v1/chat/completions", (route) => route.abort());
      await page.getByRole("button", { name: "New chat" }).click();
      await send("Hello", ".failure");
      await look("a failure");
      await go("sessions");
      await page.fill("#sessions-new-name", `s-${size}-${scheme}`);
      await page.locator("#sessions-new button").click();
      await page.locator("#chat-title", { hasText: `s-${size}-${scheme}` }).waitFor();
      await send("Hello");
      await look("a session");
      await page.locator("#chat-fork").click();
      await look("a question");
      await page.locator("dialog").getByRole("button", { name: "Fork" }).click();
      await page.locator("dialog").waitFor({ state: "detached" });
      await go("sessions");
      await page.locator(".fold").last().click();
      await page.locator(".more").waitFor();
      await look("the list");
      await go("now");
      await look("now");
      await page.getByRole("button", { name: "API key" }).click();
      await page.locator("#key-form").waitFor();
      await look("the key");
      assert.deepEqual(page.problems, []);
    });
  }
}

test("what has the focus is seen, and all is reached by Tab", async () => {
  const page = await open(chrome, proxy.address);
  await say(page, "Hello");
  const reached = new Set();
  for (let i = 0; i < 60; i += 1) {
    await page.keyboard.press("Tab");
    const { id, text, width, style, isNothing } = await page.evaluate(() => {
      const { outlineWidth, outlineStyle } = getComputedStyle(document.activeElement);
      const { id, textContent: text } = document.activeElement;
      return { id, text, width: parseFloat(outlineWidth), style: outlineStyle, isNothing: document.activeElement === document.body };
    });
    if (isNothing) continue;
    assert.ok(width >= 2 && style !== "none", `${id} ${text}: outline ${width} ${style}`);
    reached.add(id || text);
  }
  for (const wanted of ["words", "effort", "send", "attach", "log", "chat-new", "key-open", "sessions-new-name", "Copy"]) {
    assert.ok(reached.has(wanted), `${wanted} is reached: ${[...reached]}`);
  }
});

// Who may ask, and how much: tokens, ports, long texts; and what the page says where it is refused.
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { address, browser, by, DESK, PYTHON, see, SHOTS, visit, watch } from "./harness.mjs";

const TOKEN = "aB3dE5gH7jK9mN1p";

test("with a host and a token: the address lets in, and others are told in words", async () => {
  const server = await see("--host", "0.0.0.0", "--token", TOKEN);
  const port = new URL(server.address).port;
  const context = await browser.newContext({ viewport: DESK });
  const page = await context.newPage();
  watch(page, "token");
  await page.goto(`http://127.0.0.1:${port}/?token=${TOKEN}#/sentence?quantity=f`);
  await by(page, "heat").first().waitFor();
  assert.ok(!page.url().includes(TOKEN), page.url());
  assert.match(page.url(), /#\/sentence\?quantity=f/);
  const [cookie] = await context.cookies();
  assert.deepEqual([cookie.value, cookie.httpOnly, cookie.sameSite], [TOKEN, true, "Strict"]);
  await page.goto(`http://127.0.0.1:${port}/#/paths`); // the cookie is enough now
  await by(page, "verdict-rnn").waitFor();
  await context.close();
  for (const query of ["", "?token=wrong"]) {
    const stranger = await (await browser.newContext()).newPage();
    const answer = await stranger.goto(`http://127.0.0.1:${port}/${query}`);
    assert.equal(answer.status(), 403);
    await stranger.getByText("the token is missing or wrong").waitFor();
    await stranger.getByText("open the address with ?token=").waitFor();
    await stranger.screenshot({ path: join(SHOTS, "refused.png") });
    await stranger.context().close();
  }
  server.stop();
});

test("a port in use is said in words, with what to do", () => {
  const done = spawnSync(PYTHON, ["-m", "unspool", "see", "--port", new URL(address).port, "--no-browser"], { encoding: "utf8" });
  assert.equal(done.status, 2);
  assert.match(done.stderr, /port \d+ is in use/);
  assert.match(done.stderr, /Fix: --port/);
});

test("ten thousand words are drawn, and one more is refused with the limit", async () => {
  const page = await visit("#/sentence?bars=none");
  await by(page, "heat").first().waitFor();
  const words = Array.from({ length: 10_000 }, (_, k) => ["the", "film", "was", "good"][k % 4]);
  await by(page, "text").fill(words.join(" "));
  // The example reads 400 words of a text; that it leaves the others out is said.
  await page.getByText(/Heat map of the input gate: 400 words/).waitFor({ state: "attached" });
  await page.getByText("reads 400 words of a text at most: 9600 after them are left out").waitFor();
  await by(page, "text").fill([...words, "."].join(" "));
  await by(page, "failure").getByText("Received: 10,001 units").waitFor();
  await by(page, "failure").getByText("Fix: 10,000 words").waitFor();
  await page.screenshot({ path: join(SHOTS, "sentence-too-long.png") });
  await page.context().close();
});

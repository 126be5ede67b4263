// What is saved from the page, and the page saved as one file.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { browser, by, cell, DESK, example, HERE, PYTHON, saved, SHOTS, TEXT, troubles, visit } from "./harness.mjs";

test("what is saved opens", async () => {
  // Chromium hands a page ten files at the most before it asks: the views are visited in two pages.
  let page = await visit("#/sentence?quantity=c");
  await by(page, "heat").first().waitFor();
  const check = async (where) => {
    const png = await saved(page, where, "png");
    assert.equal(png.subarray(1, 4).toString(), "PNG");
    const svg = (await saved(page, where, "svg")).toString();
    const drawn = await page.evaluate((text) => new DOMParser().parseFromString(text, "image/svg+xml").querySelectorAll("parsererror").length, svg);
    assert.equal(drawn, 0);
    assert.ok(!/href="http/.test(svg));
    JSON.parse((await saved(page, where, "json")).toString());
    return (await saved(page, where, "csv")).toString().trim().split("\r\n");
  };
  const rows = await check(page.locator("figure.heat"));
  assert.equal(rows.length, 1 + 2 * TEXT.split(" ").length);
  await by(page, "nav-paths").click();
  await page.locator('path[data-series="RNN"]').waitFor();
  assert.ok((await check(page.locator("figure").first())).length > 30);
  await page.context().close();
  page = await visit("#/sentence?quantity=c");
  await by(page, "heat").first().waitFor();
  await by(page, "nav-training").click();
  await page.locator('path[data-series="held out"]').first().waitFor();
  assert.ok((await check(page.locator("figure").first())).length > 10);
  await by(page, "nav-step").click();
  await by(page, "stage").waitFor();
  const step = JSON.parse((await saved(page, page.locator("figure").first(), "json")).toString());
  assert.equal(step.words.length, TEXT.split(" ").length);
  assert.match((await saved(page, page.locator("figure").first(), "svg")).toString(), /^<svg /);
  assert.equal((await saved(page, page.locator("figure").first(), "png")).subarray(1, 4).toString(), "PNG");
  await by(page, "nav-model").click();
  await page.locator("table").waitFor();
  assert.match((await saved(page, page.locator("main"), "csv")).toString(), /parameters/);
  await page.context().close();
});

test("one file: Sentence and Paths from the disk, with the numbers of the server's page and no request", async () => {
  const place = mkdtempSync(join(tmpdir(), "unspool-file-"));
  const file = join(place, "views.html");
  execFileSync(PYTHON, ["-m", "unspool", "inspect", example("lstm"), TEXT, "--html", file, "--quiet"]);
  const served = await visit("#/sentence?quantity=f");
  await by(served, "heat").first().waitFor();
  const expected = (await cell(served, { direction: 1, word: 5, unit: 7 })).said;
  await served.context().close();

  const context = await browser.newContext({ viewport: DESK });
  const page = await context.newPage();
  const asked = [];
  page.on("console", (message) => message.type() === "error" && troubles.push(`one file: ${message.text()}`)); // a policy broken too
  page.on("pageerror", (error) => troubles.push(`one file: ${error.message}`));
  page.on("request", (request) => asked.push(request.url().slice(0, 100)));
  await page.goto(`file://${file}#/sentence?quantity=f`);
  await by(page, "heat").first().waitFor();
  assert.equal((await cell(page, { direction: 1, word: 5, unit: 7 })).said, expected);
  assert.equal(await by(page, "label").textContent(), "praise");
  await page.screenshot({ path: join(SHOTS, "file-sentence.png"), fullPage: true });
  await by(page, "nav-paths").click();
  await by(page, "slider-scale").evaluate((slider) => {
    slider.value = "2";
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
  await by(page, "verdict-rnn").getByText("explodes").waitFor();
  await page.screenshot({ path: join(SHOTS, "file-paths.png"), fullPage: true });
  assert.deepEqual(asked.filter((url) => !url.startsWith("data:") && !url.startsWith("file:///")), []);
  assert.equal(asked.filter((url) => url.startsWith("file:")).length, 1);
  // What a slider's label says is what the curves are of, at first and where a link says another number.
  const numbers = (from) => by(from, "verdict-lstm").locator("small").textContent();
  const label = (key) => page.locator("label", { has: by(page, `slider-${key}`) }).locator("output").textContent();
  for (const [hash, keep] of [["#/paths", "1"], ["#/paths?keep=3.7&scale=1.42", "3"], ["#/paths?keep=-6", "-3"]]) {
    await page.goto("about:blank");
    await page.goto(`file://${file}${hash}`);
    await by(page, "verdict-lstm").waitFor();
    assert.equal((await label("keep")).replace("−", "-"), keep);
    const same = await visit(`#/paths?keep=${keep}&scale=${await label("scale")}`);
    await by(same, "verdict-lstm").waitFor();
    assert.equal(await numbers(page), await numbers(same));
    await same.context().close();
  }
  await context.close();
  rmSync(place, { recursive: true, force: true });
});

test("one file of two layers: what reaches a word is the layer's own, and a layer that is not there is refused", async () => {
  const place = mkdtempSync(join(tmpdir(), "unspool-layers-"));
  const file = join(place, "views.html");
  execFileSync(PYTHON, [join(HERE, "large.py"), place, example("lstm")]);
  execFileSync(PYTHON, ["-m", "unspool", "inspect", join(place, "large"), "the film was not good", "--html", file, "--quiet"]);
  const page = await (await browser.newContext({ viewport: DESK })).newPage();
  const drawn = async (layer) => {
    await page.goto("about:blank");
    await page.goto(`file://${file}#/paths${layer}`);
    return page.locator('path[data-series="by the cell state alone"]').getAttribute("d");
  };
  const top = await drawn("");
  assert.equal(await drawn("?layer=1"), top);
  assert.notEqual(await drawn("?layer=0"), top);
  await page.goto("about:blank");
  await page.goto(`file://${file}#/paths?layer=7`);
  await page.getByText("holds only what was written into it").waitFor();
  await page.context().close();
  rmSync(place, { recursive: true, force: true });
});

// Each view on a desk and a phone, light and dark, by pointer and by keys.
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { gzipSync } from "node:zlib";
import { chromium } from "playwright-core";
import { address, by, cell, CHROMIUM, DESK, PHONE, serious, SHOTS, STATIC, visit } from "./harness.mjs";

const VIEWS = ["sentence", "step", "paths", "training", "model"];

test("the built page is small", () => {
  const files = readdirSync(STATIC, { recursive: true, withFileTypes: true }).filter((entry) => entry.isFile());
  const size = files.reduce((sum, file) => sum + gzipSync(readFileSync(join(file.parentPath ?? file.path, file.name))).length, 0);
  assert.ok(size < 600_000, `${size} bytes compressed`);
});

for (const view of VIEWS)
  test(`${view}: shown on a desk and a phone, light and dark, with no serious violation`, async () => {
    for (const [name, size, dark] of [["desk", DESK, false], ["desk-dark", DESK, true], ["phone", PHONE, false], ["phone-dark", PHONE, true]]) {
      const page = await visit(`#/${view}`, { size, dark });
      await page.waitForFunction(() => document.querySelector("canvas, figure svg path, table"));
      await page.waitForTimeout(300);
      await page.screenshot({ path: join(SHOTS, `${view}-${name}.png`), fullPage: true });
      const wide = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
      assert.ok(wide <= 0, `${view} on a ${name} is ${wide} pixels too wide`);
      assert.deepEqual(await serious(page), []);
      await page.context().close();
    }
  });

test("one step: five stages with numbers, forwards by key and by itself, for every cell", async () => {
  for (const [which, last] of [["example-lstm", "5. Show"], ["example-gru", "5. Add"], ["example-rnn_tanh", "3. Squash"]]) {
    const page = await visit(`#/step?which=${which}&at=3&unit=2`);
    await by(page, "stage").waitFor();
    const count = Number(last[0]);
    for (let k = 1; k < count; k++) await by(page, "forward").click();
    await page.getByRole("heading", { name: last }).waitFor();
    const hidden = await by(page, "vector-hₜ").textContent();
    assert.match(hidden, /^-?\d/);
    const four = Number(hidden).toFixed(4);
    assert.ok((await by(page, "stage").locator("math").allTextContents()).join(" ").includes(four.replace("-", "")), `${four} stands in the formula`);
    await page.screenshot({ path: join(SHOTS, `step-${which}.png`), fullPage: true });
    await page.keyboard.press("ArrowRight");
    await page.getByRole("heading", { name: /1\. What comes in, at .good/ }).waitFor();
    await by(page, "play").click();
    await page.getByRole("heading", { name: /^2\. / }).waitFor({ timeout: 6000 });
    await page.context().close();
  }
});

test("paths: the slider turns vanishing into exploding, and the curve moves", async () => {
  const page = await visit("#/paths?relu=true&steps=60&scale=0.4");
  const verdict = () => by(page, "verdict-rnn").textContent();
  await by(page, "verdict-rnn").getByText("vanishes").waitFor();
  const curve = page.locator('path[data-series="RNN"]');
  const before = await curve.getAttribute("d");
  await by(page, "slider-scale").evaluate((slider) => {
    slider.value = "2";
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  });
  await by(page, "verdict-rnn").getByText("explodes").waitFor();
  assert.notEqual(await curve.getAttribute("d"), before);
  assert.match(await verdict(), /explodes/);
  await page.waitForFunction(() => location.hash.includes("scale=2"));
  await page.screenshot({ path: join(SHOTS, "paths-exploding.png"), fullPage: true });
  await page.context().close();
});

test("keys alone lead to every view, every control and back", async () => {
  const page = await visit("#/sentence");
  await by(page, "heat").first().waitFor();
  const held = () => page.evaluate(() => document.activeElement.dataset.test ?? document.activeElement.className ?? "");
  const until = async (wanted) => {
    for (let k = 0; k < 60; k++) {
      await page.keyboard.press("Tab");
      if ((await held()).includes(wanted)) return;
    }
    assert.fail(`Tab never came to ${wanted}`);
  };
  await page.keyboard.press("Tab");
  assert.match(await held(), /skip/);
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.activeElement.id), "main");
  for (const wanted of ["text", "compare", "quantity-f", "bars", "save-svg", "scroller"]) await until(wanted);
  const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
  assert.notEqual(outline, "none", "where the keys are can be seen");
  // From the top again: a view by its link, a slider by its arrows.
  await page.evaluate(() => document.activeElement.blur());
  await page.locator(".skip").focus();
  await until("nav-paths");
  await page.keyboard.press("Enter");
  await by(page, "slider-scale").waitFor();
  await until("slider-scale");
  const before = await by(page, "slider-scale").inputValue();
  await page.keyboard.press("ArrowRight");
  assert.ok(Number(await by(page, "slider-scale").inputValue()) > Number(before));
  await page.locator(".skip").focus();
  await until("nav-step");
  await page.keyboard.press("Enter");
  await by(page, "stage").waitFor();
  await until("forward");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { name: /^2\. / }).waitFor();
  await page.locator(".skip").focus();
  await until("theme");
  await page.keyboard.press("Enter");
  assert.equal(await page.evaluate(() => document.documentElement.dataset.theme), "dark");
  await page.context().close();
});

test("without WebGL everything is drawn", async () => {
  const plain = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-3d-apis", "--disable-gpu"] });
  const page = await plain.newPage();
  await page.goto(`${address}#/sentence`);
  assert.equal(await page.evaluate(() => document.createElement("canvas").getContext("webgl")), null);
  await by(page, "heat").first().waitFor();
  assert.match((await cell(page, { direction: 0, word: 2, unit: 1 })).said, /= -?\d/);
  await plain.close();
});

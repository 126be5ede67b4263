// The Sentence view: a text typed, cells pointed at, two texts compared, a pattern found elsewhere.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { join } from "node:path";
import { test } from "node:test";
import { by, cell, example, HERE, PYTHON, SHOTS, TEXT, visit } from "./harness.mjs";

test("sentence: a typed text changes the prediction, and three cells have introspect's numbers", async () => {
  const page = await visit("#/sentence");
  assert.equal(await by(page, "label").textContent(), "praise");
  await by(page, "text").fill("the film was good at first , but the ending is awful .");
  await page.waitForFunction(() => document.querySelector('[data-test="label"]').textContent === "blame");
  await page.waitForFunction(() => location.hash.includes("text=the+film+was+good"));

  const folder = example("lstm");
  const expected = JSON.parse(execFileSync(PYTHON, [join(HERE, "measured.py"), folder, TEXT], { encoding: "utf8" }));
  await by(page, "text").fill(TEXT);
  await page.waitForFunction(() => document.querySelector('[data-test="label"]').textContent === "praise");
  for (const one of expected) {
    await by(page, `quantity-${one.letter}`).click();
    await page.waitForFunction((letter) => document.querySelector(`[data-test="quantity-${letter}"]`).ariaPressed === "true", one.letter);
    const { said } = await cell(page, one);
    const shown = said.match(/= (\S+)$/)[1];
    const digits = shown.replace(/[-.]/g, "").replace(/^0+/, "").replace(/e.*/, "").length;
    assert.ok(digits >= 4, said);
    assert.equal(Number(one.value.toPrecision(Math.min(7, digits))), Number(shown), `${said}; introspect ${one.value}`);
  }
  await page.context().close();
});

test("sentence: keys walk through the picture, and a table says it too", async () => {
  const page = await visit("#/sentence?quantity=f");
  await by(page, "heat").first().waitFor();
  await page.locator(".scroller").first().focus();
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight", "Enter", "Shift+ArrowDown"]) await page.keyboard.press(key);
  const said = await by(page, "readout").first().textContent();
  assert.match(said, /word 3 .was., forward →, unit 1: f = /);
  await page.getByRole("button", { name: "table" }).first().click();
  assert.match(await page.locator("table").first().textContent(), new RegExp(said.match(/= (\S+)$/)[1]));
  await page.context().close();
});

test("sentence: two texts compared, the changed word set off", async () => {
  const page = await visit("#/sentence?quantity=h");
  await by(page, "compare").click();
  await by(page, "against").fill(TEXT.replace("wonderful", "awful"));
  await page.waitForFunction(() => [...document.querySelectorAll('[data-test="label"]')].map((e) => e.textContent).join() === "praise,blame");
  await page.screenshot({ path: join(SHOTS, "sentence-compared.png"), fullPage: true });
  await page.getByLabel("the difference only").check();
  await page.getByText(/Heat map of the difference/).waitFor({ state: "attached" });
  await page.context().close();
});

test("sentence: a search finds the place that was planted", async () => {
  const page = await visit("#/sentence?quantity=f");
  await by(page, "heat").first().waitFor();
  const { position, said } = await cell(page, { direction: 0, word: 3, unit: 5 });
  await by(page, "heat").first().click({ position });
  // The text itself, among two that say nothing of the kind: the unit does there what it does here.
  await by(page, "corpus").fill(`it is\n${TEXT}\nthe`);
  await by(page, "find").click();
  await by(page, "found").waitFor();
  const found = await by(page, "found").textContent();
  assert.match(found, /in 3 texts/);
  const bound = Number(Number(said.match(/= (\S+)$/)[1]).toPrecision(3));
  assert.ok(found.includes(`${bound}`), `${said}, but: ${found}`);
  const marks = await page.locator("ol mark").allTextContents();
  assert.ok(marks.includes("not"), `marked: ${marks}`);
  await page.screenshot({ path: join(SHOTS, "sentence-search.png"), fullPage: true });
  await page.context().close();
});

test("sentence: a script is text, an empty text is said, other scripts are shown", async () => {
  const page = await visit("#/sentence");
  await by(page, "heat").first().waitFor();
  await by(page, "text").fill("<script>window.broken=1</script> <img src=x onerror=window.broken=1>");
  await page.getByRole("button", { name: "table" }).first().click();
  await page.getByRole("rowheader", { name: "onerror" }).first().waitFor(); // what is drawn is in the page's own elements too
  assert.equal(await page.evaluate(() => window.broken), undefined);
  assert.equal(await page.locator("main script, main img").count(), 0);
  await page.getByRole("button", { name: "picture" }).first().click();
  await by(page, "text").fill("");
  await by(page, "failure").waitFor();
  await by(page, "text").fill("هذا فيلم جميل 這部電影 很好");
  await page.getByText("right-to-left ones too").waitFor();
  await by(page, "heat").first().waitFor();
  assert.match((await cell(page, { direction: 0, word: 3, unit: 1 })).said, /word 4 .這., .*= -?\d/);
  await page.screenshot({ path: join(SHOTS, "sentence-scripts.png"), fullPage: true });
  await page.context().close();
});

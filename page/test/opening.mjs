// What is opened by dropping it: models, recordings, failure reports; and what is neither.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { by, cell, example, HERE, PYTHON, SHOTS, visit } from "./harness.mjs";

let place;
before(() => {
  place = mkdtempSync(join(tmpdir(), "unspool-opening-"));
});
after(() => rmSync(place, { recursive: true, force: true }));

/** Let go of a file over the page, as a hand would. */
async function drop(page, name, bytes) {
  await page.evaluate(([called, text]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], called));
    for (const kind of ["dragover", "drop"]) window.dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
  }, [name, bytes.toString("base64")]);
}

test("model: a dropped folder is opened, and a file that is neither is refused in words", async () => {
  const page = await visit("#/model");
  const folder = example("gru");
  await by(page, "folder").setInputFiles(folder);
  await page.getByRole("heading", { name: "dropped model" }).waitFor();
  assert.match(await page.locator("dl").textContent(), /GRU/);
  await by(page, "file").setInputFiles({ name: "no.safetensors", mimeType: "application/octet-stream", buffer: Buffer.from("this is no recording") });
  await by(page, "failure").waitFor();
  await page.context().close();
});

test("a dropped failure report opens at the step, the layer and the gate that it names", async () => {
  const told = JSON.parse(execFileSync(PYTHON, [join(HERE, "reports.py"), place, example("lstm")], { encoding: "utf8" }));
  const page = await visit("#/model");
  await drop(page, "fault.safetensors", readFileSync(join(place, "fault.safetensors")));
  await page.getByRole("heading", { name: "What the network makes of a text" }).waitFor();
  await page.getByText(told.title).waitFor();
  await page.waitForFunction((at) => location.hash.includes(`first=${at}`) || at === 0, told.step);
  const hash = new URLSearchParams((await page.evaluate(() => location.hash)).split("?")[1]);
  assert.equal(Number(hash.get("at") ?? 0), told.step);
  assert.equal(Number(hash.get("layer")), told.layer);
  assert.equal(await page.locator('[data-test^="quantity-"][aria-pressed="true"]').getAttribute("data-test"), `quantity-${told.letter}`);
  assert.match((await cell(page, { direction: 0, word: told.step, unit: told.unit })).said, /= no number$/);
  assert.equal(await by(page, "text").isVisible(), false, "a training step has no text to type");
  await page.screenshot({ path: join(SHOTS, "sentence-fault.png"), fullPage: true });
  await by(page, "nav-step").click();
  await by(page, "failure").getByText("choose a model").waitFor();
  await page.context().close();
});

test("what cannot be opened is said on the page, with what to do", async () => {
  const page = await visit("#/model");
  for (const [name, said] of [
    ["later.safetensors", /version 2/],
    ["cut.safetensors", /Fix:/],
    ["config.json", /Fix:/],
  ]) {
    const path = join(place, name); // as `reports.py` left it
    await by(page, "file").setInputFiles(path);
    await by(page, "failure").filter({ hasText: said }).waitFor();
    const words = await by(page, "failure").textContent();
    assert.match(words, /Fix: ./, words);
    assert.ok(!words.includes(tmpdir()), words);
  }
  await page.screenshot({ path: join(SHOTS, "model-refused.png"), fullPage: true });
  await page.context().close();
});

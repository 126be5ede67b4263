// How fast it is: printed, for `benchmarks/page.py` to write down; a busy machine says nothing here.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { by, example, HERE, PYTHON, see, SHOTS, TEXT, visit } from "./harness.mjs";

test("how fast it is, printed: forty words typed in two layers of 256, and 5,000 words scrolled", async () => {
  const place = mkdtempSync(join(tmpdir(), "unspool-large-"));
  execFileSync(PYTHON, [join(HERE, "large.py"), place, example("lstm")]);
  const page = await visit("#/model");
  await by(page, "folder").setInputFiles(join(place, "large"));
  await page.getByRole("heading", { name: "dropped model" }).waitFor();
  await by(page, "nav-sentence").click();
  await by(page, "heat").first().waitFor();
  const words = Array.from({ length: 40 }, (_, k) => TEXT.split(" ")[k % 14]);
  const took = [];
  for (let k = 0; k < 15; k++) {
    words[k] = k % 2 ? "good" : "bad";
    await page.waitForTimeout(300); // what is measured beside the words has been drawn too
    took.push(
      await page.evaluate(async (text) => {
        const box = document.querySelector('[data-test="text"]');
        const heat = document.querySelector('[data-test="heat"]');
        const begun = performance.now();
        const redrawn = new Promise((done) => {
          const watch = new MutationObserver(() => (watch.disconnect(), done()));
          watch.observe(heat, { attributes: true, attributeFilter: ["width"] });
        });
        box.value = text;
        box.dispatchEvent(new Event("input", { bubbles: true }));
        await Promise.race([redrawn, new Promise((done) => setTimeout(done, 5000))]);
        await new Promise((done) => requestAnimationFrame(done));
        return performance.now() - begun;
      }, words.join(" ")),
    );
  }
  took.sort((a, b) => a - b);
  console.log(`typed to drawn, 40 words x 2 layers x 256 units: median ${took[7].toFixed(0)} ms, slowest ${took.at(-1).toFixed(0)} ms`);
  assert.ok(took[7] < 5000, "it was drawn");

  await by(page, "nav-model").click();
  await by(page, "file").setInputFiles(join(place, "long.safetensors"));
  await page.getByRole("heading", { name: /recording/ }).waitFor();
  await by(page, "nav-sentence").click();
  await by(page, "heat").first().waitFor();
  const frames = await page.evaluate(async () => {
    const box = document.querySelector(".scroller");
    const begun = performance.now();
    let count = 0;
    while (performance.now() - begun < 3000) {
      box.scrollTop += 55;
      await new Promise((done) => requestAnimationFrame(done));
      count += 1;
    }
    return { rate: count / 3, top: box.scrollTop };
  });
  console.log(`5,000 words scrolled: ${frames.rate.toFixed(0)} frames a second`);
  assert.ok(frames.top > 1000);
  await page.screenshot({ path: join(SHOTS, "sentence-recording.png") });
  await page.context().close();
  rmSync(place, { recursive: true, force: true });
});

test("how fast a long log is: 50,000 losses drawn, and read off as the pointer moves", async () => {
  const place = mkdtempSync(join(tmpdir(), "unspool-log-"));
  mkdirSync(join(place, "run"));
  let log = "";
  for (let step = 1; step <= 50_000; step++) {
    log += JSON.stringify({ step, loss: 1 / Math.sqrt(step) + 0.05 * Math.sin(step) }) + "\n";
    if (step % 5000 === 0) log += JSON.stringify({ epoch: step / 5000, step, train_loss: 0.1, dev_loss: 0.2, accuracy: 0.9, gradient_norm: 1 }) + "\n";
  }
  writeFileSync(join(place, "run", "metrics.jsonl"), log);
  const server = await see(join(place, "run"));
  const page = await visit("#/paths", { from: server.address });
  await by(page, "verdict-rnn").waitFor();
  const drawn = await page.evaluate(async () => {
    const begun = performance.now();
    document.querySelector('[data-test="nav-training"]').click();
    while (!document.querySelector('path[data-series="training"]')) await new Promise((done) => requestAnimationFrame(done));
    return performance.now() - begun;
  });
  const rate = await page.evaluate(async () => {
    const svg = document.querySelector('svg:has(path[data-series="training"])');
    const box = svg.getBoundingClientRect();
    const begun = performance.now();
    let count = 0;
    while (performance.now() - begun < 3000) {
      const clientX = box.left + 60 + ((7 * count) % (box.width - 80));
      svg.dispatchEvent(new PointerEvent("pointermove", { clientX, clientY: box.top + 50, bubbles: true }));
      await new Promise((done) => requestAnimationFrame(done));
      count += 1;
    }
    return count / 3;
  });
  console.log(`50,000 losses: asked to drawn ${drawn.toFixed(0)} ms; read off at ${rate.toFixed(0)} frames a second`);
  assert.ok(rate > 0);
  await page.context().close();
  server.stop();
  rmSync(place, { recursive: true, force: true });
});

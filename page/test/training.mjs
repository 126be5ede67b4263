// The Training view: runs as they are, and one that goes on while it is looked at.
import assert from "node:assert/strict";
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { by, saved, see, SHOTS, visit } from "./harness.mjs";

test("training: the example's run, and a second one beside it", async () => {
  const page = await visit("#/training?other=example-gru");
  await by(page, "last").waitFor();
  assert.match(await by(page, "last").textContent(), /Epoch \d+, step \d+/);
  await page.locator('path[data-series^="held out"]').nth(1).waitFor();
  await page.screenshot({ path: join(SHOTS, "training-two.png"), fullPage: true });
  await page.context().close();
});

test("training: a log that grows is drawn on as it grows, and begun anew where the run begins anew", async () => {
  const place = mkdtempSync(join(tmpdir(), "unspool-live-"));
  const log = join(place, "run", "metrics.jsonl");
  mkdirSync(join(place, "run"));
  const line = (record) => JSON.stringify(record) + "\n";
  const epoch = (n) => line({ epoch: n, step: 100 * n, train_loss: 1 / n, dev_loss: 1.1 / n, accuracy: 1 - 0.5 / n, best: true, gradient_norm: 2 });
  writeFileSync(log, "");
  const server = await see(join(place, "run"));
  const page = await visit("#/training", { from: server.address });
  await page.getByText("No epoch has ended yet").waitFor();
  appendFileSync(log, line({ step: 50, loss: 1.5 }) + epoch(1) + epoch(2).slice(0, 30)); // the writer is in the middle of a line
  await by(page, "last").getByText("Epoch 1, step 100").waitFor({ timeout: 8000 });
  const curve = page.locator('path[data-series="training"]').first();
  const first = await curve.getAttribute("d");
  appendFileSync(log, epoch(2).slice(30) + line({ step: 200, monitor: { "layers.0.forward/gradient/lag_0": 1, "layers.0.forward/gradient/lag_8": 1e-7, "layers.0.forward/saturated/forget": 0.9, "layers.0.forward/exploded": 1 } }));
  appendFileSync(log, line({ step: 210, loss: 0.4 }));
  await by(page, "last").getByText("Epoch 2, step 200").waitFor({ timeout: 8000 });
  assert.notEqual(await curve.getAttribute("d"), first);
  await page.getByRole("heading", { name: "Saturated gates, layers.0.forward" }).waitFor();
  await page.screenshot({ path: join(SHOTS, "training-live.png"), fullPage: true });
  const rows = (await saved(page, page.locator("figure").first(), "csv")).toString();
  assert.match(rows, /^step,training,held out\r\n50,1\.5,/);
  assert.match(rows, /210,0\.4,/);
  writeFileSync(log, epoch(1)); // another run in its place
  await by(page, "last").getByText("Epoch 1, step 100").waitFor({ timeout: 8000 });
  await page.context().close();
  server.stop();
  rmSync(place, { recursive: true, force: true });
});

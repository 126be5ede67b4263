// What the browser tests have in common: a server with trained examples, a watched browser, where things stand.
// UNSPOOL_PYTHON is the interpreter; CHROMIUM the browser; SHOTS where screenshots go.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const HERE = dirname(fileURLToPath(import.meta.url));
export const ROOT = join(HERE, "..", "..");
export const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
export const PYTHON = process.env.UNSPOOL_PYTHON ?? join(ROOT, ".venv", "bin", "python");
export const STATIC = join(ROOT, "src", "unspool", "page", "static");
export const SHOTS = process.env.SHOTS ?? join(ROOT, "build", "page-shots");
const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
export const TEXT = "the film was not good at first , but the ending is wonderful .";
export const DESK = { width: 1280, height: 720 };
export const PHONE = { width: 390, height: 844 };

export let address;
export let browser;
export let cache;
export const troubles = [];
let stop;

/** Start `unspool see`: its address, and what ends it. */
export async function started(given, { python = PYTHON, environment = {}, cwd = undefined } = {}) {
  const server = spawn(python, ["-m", "unspool", "see", ...given, "--port", "0", "--no-browser"], {
    env: { ...process.env, UNSPOOL_CACHE: cache, XDG_CACHE_HOME: cache, PYTHONUNBUFFERED: "1", ...environment },
    cwd,
  });
  let said = "";
  const found = await new Promise((done, failed) => {
    const read = (part) => {
      said += part;
      const match = said.match(/^http:\/\/\S+$/m);
      if (match) done(match[0]);
    };
    server.stdout.on("data", read);
    server.stderr.on("data", read);
    server.on("exit", (code) => failed(new Error(`unspool see ended with ${code}:\n${said}`)));
  });
  return { address: found, stop: () => (server.removeAllListeners("exit"), server.kill("SIGINT")) };
}

export const see = (...given) => started(given);

before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  cache = mkdtempSync(join(tmpdir(), "unspool-page-"));
  ({ address, stop } = await see());
  // The examples are trained on first use: here, so that no test waits for it.
  for (const which of ["example-lstm", "example-gru", "example-rnn_tanh"]) {
    const answer = await fetch(`${address}api/model`, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ which }) });
    assert.equal(answer.status, 200, await answer.text());
  }
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
});

after(async () => {
  await browser?.close();
  stop?.();
  if (cache) rmSync(cache, { recursive: true, force: true });
  assert.deepEqual(troubles.slice(0, 10), [], "console errors, failed scripts, or requests that left this machine");
});

/** Nothing may go wrong in a page, and nothing may leave the machine. */
export function watch(page, name) {
  page.on("console", (message) => {
    // Chromium reports a refusal as an error of its own; what the page says of it is tested.
    if (message.type() === "error" && !/status of 40[03]/.test(message.text())) troubles.push(`${name}: ${message.text()}`);
  });
  page.on("pageerror", (error) => troubles.push(`${name}: ${error.message}`));
  page.on("request", (request) => {
    const url = new URL(request.url());
    if (!["data:", "blob:"].includes(url.protocol) && url.hostname !== "127.0.0.1") troubles.push(`${name}: asked ${url.href}`);
  });
}

/** A watched page at an address, of the first server or another one. */
export async function visit(hash, { size = DESK, dark = false, from = address } = {}) {
  const context = await browser.newContext({ viewport: size, colorScheme: dark ? "dark" : "light", acceptDownloads: true });
  const page = await context.newPage();
  watch(page, hash);
  await page.goto(from + hash);
  await page.locator("h1").waitFor();
  return page;
}

export const by = (page, name) => page.locator(`[data-test="${name}"]`);

/** The folder of an example that the server trained for this run. */
export function example(cell) {
  const folders = readdirSync(cache, { recursive: true, withFileTypes: true }).filter((entry) => entry.isDirectory() && entry.name === "best");
  return folders.map((entry) => join(entry.parentPath ?? entry.path, entry.name)).find((path) => path.includes(`${cell}-`));
}

/** Point at one cell of the heat map, and read what stands beside it; again where what arrived meanwhile moved the map. */
export async function cell(page, { direction, word, unit }) {
  const heat = by(page, "heat").first();
  for (;;) {
    const drawn = await heat.getAttribute("data-plan");
    const plan = JSON.parse(drawn);
    const position = { x: plan.gutter + plan.maps[direction] + (unit + 0.5) * plan.cell, y: plan.head + (word + 0.5) * plan.row };
    await heat.hover({ position });
    const said = await by(page, "readout").first().textContent();
    if ((await heat.getAttribute("data-plan")) === drawn) return { position, said };
  }
}

/** What a picture is saved as, by one of its buttons. */
export async function saved(page, where, kind) {
  const arriving = page.waitForEvent("download");
  await where.locator(`[data-test="save-${kind}"]`).first().click();
  return readFileSync(await (await arriving).path());
}

/** Whether axe finds anything serious in a page as it stands. */
export async function serious(page) {
  await page.evaluate(AXE);
  const found = await page.evaluate(() => window.axe.run());
  const bad = found.violations.filter((one) => ["serious", "critical"].includes(one.impact));
  return bad.map((one) => `${one.id}: ${one.nodes.map((node) => node.html).join(" | ").slice(0, 400)}`);
}

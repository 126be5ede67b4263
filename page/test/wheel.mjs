// The page packed in the wheel, served from it; without the page, and without node, what to do is said.
import assert from "node:assert/strict";
import { execFileSync, spawnSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, rmSync, symlinkSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { browser, by, PYTHON, ROOT, SHOTS, started, visit } from "./harness.mjs";

const place = mkdtempSync(join(tmpdir(), "unspool-wheel-"));
after(() => rmSync(place, { recursive: true, force: true }));
const python = (...given) => execFileSync(PYTHON, given, { encoding: "utf8", cwd: place, stdio: ["ignore", "pipe", "pipe"] });

test("a wheel holds the page and serves it; one without it answers questions and says what to do", async () => {
  python("-m", "pip", "wheel", ROOT, "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet", "--wheel-dir", place);
  const wheel = join(place, readdirSync(place).find((name) => name.endsWith(".whl")));
  const names = JSON.parse(python("-c", "import json, sys, zipfile; print(json.dumps(zipfile.ZipFile(sys.argv[1]).namelist()))", wheel));
  assert.ok(names.includes("unspool/page/static/index.html"), "make page was run before");
  for (const kind of ["js", "css"]) assert.equal(names.filter((name) => name.startsWith("unspool/page/static/assets/") && name.endsWith(`.${kind}`)).length, 1, kind);

  // What the wheel holds, and beside it what it asks for; the checkout and its environment are not looked at.
  const [installed, beside] = [join(place, "installed"), join(place, "beside")];
  python("-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target", installed, wheel);
  const [base, packages] = JSON.parse(python("-c", "import json, sys, sysconfig; print(json.dumps([sys._base_executable, sysconfig.get_path('purelib')]))"));
  mkdirSync(beside);
  for (const name of readdirSync(packages)) if (!name.includes("unspool") && !name.endsWith(".pth")) symlinkSync(join(packages, name), join(beside, name));
  const environment = { PYTHONPATH: `${installed}:${beside}` };
  const where = execFileSync(base, ["-c", "import unspool; print(unspool.__file__)"], { encoding: "utf8", env: { ...process.env, ...environment }, cwd: place });
  assert.ok(where.startsWith(installed), where);

  const elsewhere = { python: base, environment, cwd: place };
  const served = await started([], elsewhere);
  const page = await visit("#/sentence", { from: served.address });
  await by(page, "heat").first().waitFor();
  assert.equal(await by(page, "label").textContent(), "praise");
  await page.context().close();
  served.stop();

  rmSync(join(installed, "unspool", "page", "static"), { recursive: true });
  const bare = await started([], elsewhere);
  const stranger = await (await browser.newContext()).newPage();
  assert.equal((await stranger.goto(bare.address)).status(), 503);
  await stranger.getByText("make page").waitFor();
  await stranger.screenshot({ path: join(SHOTS, "not-built.png") });
  const told = await fetch(`${bare.address}api/things`, { method: "POST", headers: { "content-type": "application/json" }, body: "{}" });
  assert.equal(told.status, 200);
  await stranger.context().close();
  bare.stop();
});

test("without node, make page says how to build it", () => {
  const tools = join(place, "tools");
  mkdirSync(tools);
  for (const name of ["make", "sh", "bash", "find", "cat", "touch", "python3"]) {
    const found = spawnSync("which", [name], { encoding: "utf8" }).stdout.trim();
    if (found) symlinkSync(found, join(tools, name));
  }
  const done = spawnSync(join(tools, "make"), ["-B", "page/node_modules/installed"], { encoding: "utf8", cwd: ROOT, env: { PATH: tools, HOME: place } });
  assert.notEqual(done.status, 0);
  assert.match(done.stdout + done.stderr, /node 20\.19 or newer/);
});

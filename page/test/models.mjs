// A parser and a translator, trained here by `unspool train`, on every view.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { by, PHONE, PYTHON, saved, see, serious, SHOTS, visit } from "./harness.mjs";

const PARSED = "a cat sees the dog";
let place;
let server;

// So small a network is trained by one thread: where the machine is busy two would wait for one another.
const environment = { ...process.env, OMP_NUM_THREADS: "1", UNSPOOL_THREADS: "1" };
const unspool = (...given) => execFileSync(PYTHON, ["-m", "unspool", ...given], { encoding: "utf8", env: environment, stdio: ["ignore", "pipe", "pipe"] });

before(async () => {
  place = mkdtempSync(join(tmpdir(), "unspool-models-"));
  const trees = [];
  const pairs = [];
  for (const noun of ["cat", "dog", "hippopotamus"])
    for (const verb of ["sees", "likes"])
      for (const other of ["cat", "dog", "hippopotamus"])
        for (const article of ["the", "a"]) {
          const rows = [[article, "DET", 2, "det"], [noun, "NOUN", 3, "nsubj"], [verb, "VERB", 0, "root"], ["the", "DET", 5, "det"], [other, "NOUN", 3, "obj"]];
          trees.push(rows.map(([word, tag, head, kind], k) => `${k + 1}\t${word}\t_\t${tag}\t_\t_\t${head}\t${kind}\t_\t_`).join("\n") + "\n\n");
        }
  for (const a of "abcdef") for (const b of "abcdef") for (const c of "abcdef") pairs.push(`${a}${b}${c}\t${[a, b, c].join(" ").toUpperCase()}\n`);
  writeFileSync(join(place, "trees.conllu"), trees.concat(trees).join(""));
  writeFileSync(join(place, "pairs.tsv"), pairs.join(""));
  const small = ["--hidden-size", "16", "--batch-size", "8", "--learning-rate", "0.02", "--warmup-steps", "0", "--quiet"];
  unspool("train", "parsing", "--train", join(place, "trees.conllu"), "--num-layers", "1", "--word-size", "8", "--letter-size", "8", "--letter-hidden-size", "8", "--arc-size", "16", "--relation-size", "8", "--min-count", "1", "--epochs", "6", ...small, "-o", join(place, "runs", "parser"));
  unspool("train", "translation", "--train", join(place, "pairs.tsv"), "--source-units", "characters", "--target-units", "words", "--metric", "word-error", "--embedding-size", "16", "--input-dropout", "0", "--layer-dropout", "0", "--epochs", "12", ...small, "-o", join(place, "runs", "translator"));
  server = await see(join(place, "runs"));
});
after(() => {
  server?.stop();
  rmSync(place, { recursive: true, force: true });
});

/** What a picture and its data are saved as. */
async function kept(page, where) {
  assert.equal((await saved(page, where, "png")).subarray(1, 4).toString(), "PNG");
  assert.match((await saved(page, where, "svg")).toString(), /^<svg /);
  const rows = (await saved(page, where, "csv")).toString().trim().split("\r\n");
  return [rows, JSON.parse((await saved(page, where, "json")).toString())];
}

test("a parser: its tree with the scores of inspect, its gates, and a text that changes both", async () => {
  const told = JSON.parse(unspool("inspect", join(place, "runs", "parser", "best"), PARSED, "--json"));
  const page = await visit(`#/sentence?which=parser/best&text=${encodeURIComponent(PARSED)}`, { from: server.address });
  await by(page, "tree").waitFor();
  assert.equal(await by(page, "label").textContent(), "sees");
  await page.locator('[aria-label^="Dependency tree: left"]').focus();
  for (const k of [1, 2]) await page.keyboard.press("ArrowRight", k);
  const said = await by(page, "tree-readout").textContent();
  assert.match(said, /word 2 “cat”, nsubj of sees: heads sees/);
  assert.ok(said.includes(`(score ${Number(told.arcs[1][0].score.toPrecision(3))})`), `${said}; inspect: ${told.arcs[1][0].score}`);
  const [rows, data] = await kept(page, by(page, "tree"));
  assert.equal(rows.length, 6);
  for (const key of ["heads", "relations", "arcs", "kinds", "shares", "mean gates"]) assert.deepEqual(data[key], told[key], key);
  await page.screenshot({ path: join(SHOTS, "sentence-parser.png"), fullPage: true });
  await by(page, "tree").getByRole("button", { name: "table" }).click();
  assert.match(await by(page, "tree").locator("table").textContent(), /nsubj/);
  assert.deepEqual(await serious(page), []);
  await by(page, "text").fill("the dog likes a cat");
  await page.waitForFunction(() => document.querySelector('[data-test="label"]').textContent === "likes");
  for (const view of ["step", "paths", "model"]) {
    await by(page, `nav-${view}`).click();
    await page.locator("h1").waitFor();
    await page.waitForTimeout(400);
    assert.equal(await by(page, "failure").count(), 0, view);
  }
  assert.match(await page.locator("dl").textContent(), /parser/);
  await page.context().close();
});

test("a translator: output, attention with the shares of inspect, its encoder's gates, both parts counted", async () => {
  const told = JSON.parse(unspool("inspect", join(place, "runs", "translator", "best"), "fab", "--json"));
  const page = await visit("#/sentence?which=translator/best&text=fab", { from: server.address });
  await by(page, "attention").waitFor();
  assert.equal(await by(page, "label").textContent(), told.text);
  await page.locator('[aria-label^="Attention: arrow"]').focus();
  for (const key of ["ArrowDown", "ArrowDown", "ArrowRight"]) await page.keyboard.press(key);
  assert.equal(await by(page, "attention-readout").textContent(), `“${told.target[1]}”, unit 2, looks at “a”, unit 2: ${told.attention[1][1]}`);
  const [rows, data] = await kept(page, by(page, "attention"));
  assert.equal(rows.length, 1 + told.target.length);
  assert.deepEqual(data, told);
  await page.screenshot({ path: join(SHOTS, "sentence-translator.png"), fullPage: true });
  assert.deepEqual(await serious(page), []);
  await by(page, "nav-model").click();
  await page.getByRole("rowheader", { name: "decoder 0" }).waitFor();
  await page.context().close();
  const phone = await visit("#/sentence?which=translator/best&text=abcdef", { from: server.address, size: PHONE, dark: true });
  await by(phone, "attention").waitFor();
  assert.ok((await phone.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth)) <= 0);
  assert.deepEqual(await serious(phone), []);
  await phone.screenshot({ path: join(SHOTS, "sentence-translator-phone-dark.png"), fullPage: true });
  await phone.context().close();
});

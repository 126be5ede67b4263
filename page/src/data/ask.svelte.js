// Questions to the server that this page came from.  Nothing else is ever asked.
// A page that was written into one file holds its answers itself, and asks nobody.

const kept = document.getElementById("kept");
export const saved = kept ? JSON.parse(kept.textContent) : null;

/** The kept answer to a question: of words and sliders the nearest, of all else the same; what is not said fits all. */
function remembered(name, given) {
  let best = null;
  for (const [asked, answer] of saved[name] ?? []) {
    let apart = 0;
    for (const [key, value] of Object.entries(asked)) {
      const wanted = given[key] ?? "";
      if (wanted === "" || wanted === -1 || wanted === value) continue;
      apart += key === "at" || key in saved.grid ? Math.abs(wanted - value) : Infinity;
    }
    if (apart < (best?.apart ?? Infinity)) best = { apart, answer };
  }
  if (best) return best.answer;
  throw new Error("This file holds only what was written into it.\n  Fix: `unspool see MODEL` answers everything.");
}

/** Ask one question; the answer, or an Error that says what is wrong and what to do. */
export async function ask(name, given = {}) {
  if (saved) return remembered(name, given);
  let response;
  try {
    response = await fetch(`api/${name}`, {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify(given),
    });
  } catch {
    throw new Error("The page's server does not answer.\n  Fix: start it again with `unspool see`.");
  }
  return read(response);
}

export async function read(response) {
  const answer = await response.json().catch(() => ({ error: `The server said ${response.status}.` }));
  if (!response.ok) throw new Error(answer.error ?? `The server said ${response.status}.`);
  return answer;
}

/** One question asked again and again: what was answered last, and one at a time on its way. */
export class Asked {
  data = $state.raw(null);
  error = $state("");
  busy = $state(false);
  given = null; // what `data` answers
  #name;
  #next = null;
  #running = false; // not state: what asks should not depend on whether something is on its way

  constructor(name) {
    this.#name = name;
  }

  /** Ask; of questions that come faster than answers, only the newest is sent. */
  async ask(given) {
    this.#next = given;
    if (this.#running) return;
    this.#running = this.busy = true;
    while (this.#next) {
      const now = this.#next;
      this.#next = null;
      try {
        const data = await ask(this.#name, now);
        if (!this.#next) {
          this.given = now;
          this.data = data;
          this.error = "";
        }
      } catch (error) {
        if (!this.#next) {
          this.error = error.message;
          this.data = null;
        }
      }
    }
    this.#running = this.busy = false;
  }

  clear() {
    this.#next = null;
    this.data = null;
    this.error = "";
  }
}

/** Have dropped files opened: the files of a model folder, or one recording. */
export async function open(files, most = Infinity) {
  const size = files.reduce((sum, file) => sum + file.size, 0);
  if (size > most)
    throw new Error(
      `These files are too large.\n  Received: ${size.toLocaleString("en")} bytes.\n` +
        `  Fix: open them with \`unspool see PATH\`; the page takes ${most.toLocaleString("en")} bytes at the most.`,
    );
  const form = new FormData();
  for (const file of files) form.append(file.name, file, file.name);
  let response;
  try {
    response = await fetch("api/open", { method: "POST", body: form });
  } catch {
    throw new Error("The page's server does not answer.\n  Fix: start it again with `unspool see`.");
  }
  return read(response);
}

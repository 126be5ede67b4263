// What is looked at stands in the address, so that a link shows another the same picture.

const DEFAULTS = {
  view: "sentence",
  which: "",
  text: null, // null: the page's own text; "" is an empty text
  against: null,
  layer: -1,
  direction: 0,
  quantity: "",
  unit: 0,
  first: -1,
  last: -1,
  bars: "contributions",
  at: 0,
  stage: 0,
  scale: 0.9,
  keep: 1,
  steps: 40,
  clip: 1,
  relu: true,
  seed: 0,
  cell: "lstm",
  run: "",
  other: "",
};

export const VIEWS = [
  { id: "sentence", title: "Sentence", says: "what the network makes of a text" },
  { id: "step", title: "One step", says: "one step, by its formulas" },
  { id: "paths", title: "Paths", says: "how far a gradient reaches back" },
  { id: "training", title: "Training", says: "a run, as it goes on" },
  { id: "model", title: "Model", says: "layers, sizes and costs" },
];

function parse(hash) {
  const [path, query] = hash.replace(/^#\/?/, "").split(/\?(.*)/s);
  const found = { ...DEFAULTS };
  if (VIEWS.some((view) => view.id === path)) found.view = path;
  for (const [key, value] of new URLSearchParams(query ?? "")) {
    const usual = DEFAULTS[key];
    if (key === "view" || usual === undefined) continue;
    if (typeof usual === "number") {
      if (Number.isFinite(Number(value))) found[key] = Number(value);
    } else if (typeof usual === "boolean") found[key] = value === "true";
    else found[key] = value;
  }
  return found;
}

/** The address of the page with some things changed. */
export function href(changes) {
  const now = { ...address, ...changes };
  // eslint-disable-next-line svelte/prefer-svelte-reactivity -- made, read once and let go
  const query = new URLSearchParams();
  for (const [key, value] of Object.entries(now))
    if (key !== "view" && value !== DEFAULTS[key]) query.set(key, String(value));
  const text = query.toString();
  return `#/${now.view}${text ? `?${text}` : ""}`;
}

export const address = $state(parse(location.hash));

/** Keep state and address the same, both ways; returns what ends it. */
export function follow() {
  const arrived = () => Object.assign(address, parse(location.hash));
  addEventListener("hashchange", arrived);
  let later;
  const stop = $effect.root(() => {
    $effect(() => {
      const target = href({});
      clearTimeout(later);
      later = setTimeout(() => {
        if (location.hash !== target) history.replaceState(null, "", target);
      }, 150);
    });
  });
  return () => {
    removeEventListener("hashchange", arrived);
    clearTimeout(later);
    stop();
  };
}

// Where everything of a heat map stands, and how it is drawn: words down, units across, one map beside another.

import { scale } from "../data/colours.js";
import { short } from "../data/numbers.js";

export const HEAD = 26;
export const ROW = 22;
const GAP = 22;
const MEAN = 14;

/** Widths and places for maps of some units in some room. */
export function layout({ words, maps, bars, room }) {
  const label = Math.round(Math.min(150, Math.max(64, 16 + 7.6 * Math.max(...words.map((word) => [...word].length)))));
  const bar = bars ? (room < 560 ? 64 : 120) : 0;
  const gutter = label + bar;
  const units = maps.reduce((sum, map) => sum + (map.values[0]?.length ?? 0), 0);
  const free = room - gutter - maps.length * (GAP + MEAN) - 12;
  const cell = Math.max(4, Math.min(26, Math.floor(free / Math.max(units, 1))));
  let x = 0;
  const placed = maps.map((map) => {
    const size = map.values[0]?.length ?? 0;
    const place = { ...map, size, x: x + MEAN + 4, mean: x, width: size * cell };
    x += MEAN + 4 + size * cell + GAP;
    return place;
  });
  return { label, bar, gutter, cell, maps: placed, wide: gutter + x - GAP + 2, high: HEAD + words.length * ROW + 4 };
}

/** One pixel a cell. */
export function image(rows, colour) {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [rows[0]?.length || 1, rows.length || 1];
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(canvas.width, canvas.height);
  let at = 0;
  for (const row of rows)
    for (const value of row) {
      const [r, g, b] = colour(value);
      pixels.data[at++] = r;
      pixels.data[at++] = g;
      pixels.data[at++] = b;
      pixels.data[at++] = 255;
    }
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** Draw what shows of it at a scroll position. */
export function draw(pen, plan, { words, known, marked, bars, images, means, left, top, width, height, ink }) {
  const first = Math.max(0, Math.floor(top / ROW));
  const last = Math.min(words.length, Math.ceil((top + height - HEAD) / ROW) + 1);
  const rows = last - first;
  const y0 = HEAD + first * ROW - top;
  pen.clip(plan.gutter, 0, width - plan.gutter, height, () => {
    plan.maps.forEach((map, k) => {
      const x = plan.gutter + map.x - left;
      const mean = plan.gutter + map.mean - left;
      pen.clip(plan.gutter, HEAD, width - plan.gutter, height - HEAD, () => {
        if (rows > 0) {
          pen.cells(means[k], first, rows, mean, y0, MEAN, rows * ROW);
          pen.cells(images[k], first, rows, x, y0, map.width, rows * ROW);
        }
      });
      pen.text(x, HEAD / 2, map.title, ink.text, { size: 12, weight: 600, room: Math.max(map.width, 90) });
      pen.text(mean + MEAN / 2, HEAD / 2, "⌀", ink.soft, { size: 11, anchor: "middle" });
    });
  });
  pen.clip(0, HEAD, plan.gutter, height - HEAD, () => {
    const most = bars ? Math.max(...bars.values.map((value) => Math.abs(value ?? 0)), 1e-12) : 1;
    for (let t = first; t < last; t++) {
      const y = HEAD + t * ROW - top;
      if (marked?.has(t)) pen.rect(0, y + 1, plan.label - 6, ROW - 2, ink.mark);
      pen.text(4, y + ROW / 2, words[t], known?.[t] === false ? ink.soft : ink.text, {
        size: 13,
        weight: marked?.has(t) ? 700 : 400,
        room: plan.label - 12,
      });
      if (!bars) continue;
      const value = bars.values[t] ?? 0;
      const zero = plan.label + (bars.signed ? plan.bar / 2 : 4);
      const span = bars.signed ? plan.bar / 2 - 8 : plan.bar - 14;
      const long = (Math.abs(value) / most) * span;
      pen.rect(value < 0 ? zero - long : zero, y + 4, Math.max(long, 0.75), ROW - 8, value < 0 ? ink.away : ink.towards);
    }
    if (bars) pen.rect(plan.label + (bars.signed ? plan.bar / 2 : 4) - 0.5, HEAD, 1, last * ROW - top, ink.soft);
  });
  if (bars) pen.text(plan.label + 2, HEAD / 2, bars.title, ink.soft, { size: 11, room: plan.bar - 4 });
}

/** The frame of a selection or a cursor, if it shows. */
export function place(plan, { map, unit, first, last }, { left, top }) {
  const chosen = plan.maps[map];
  if (!chosen) return null;
  return {
    x: plan.gutter + chosen.x + unit * plan.cell - left,
    y: HEAD + first * ROW - top,
    width: plan.cell,
    height: (last - first + 1) * ROW,
  };
}

/** Which cell is under a point of the picture. */
export function under(plan, words, x, y, { left, top }) {
  if (y < HEAD) return null;
  const row = Math.floor((y - HEAD + top) / ROW);
  if (row < 0 || row >= words.length) return null;
  if (x < plan.gutter) return { map: -1, row, unit: -1 };
  const across = x - plan.gutter + left;
  for (const [k, map] of plan.maps.entries()) {
    if (across >= map.mean && across < map.mean + MEAN) return { map: k, row, unit: -1 };
    const unit = Math.floor((across - map.x) / plan.cell);
    if (across >= map.x && unit < map.size) return { map: k, row, unit };
  }
  return { map: -1, row, unit: -1 };
}

/** The summary that stands for the picture. */
export function summary(words, maps, name) {
  const parts = maps.map((map) => {
    let best = null;
    let sum = 0;
    let count = 0;
    map.values.forEach((row, t) =>
      row.forEach((value, unit) => {
        if (value === null) return;
        sum += value;
        count += 1;
        if (best === null || Math.abs(value) > Math.abs(best.value)) best = { value, t, unit };
      }),
    );
    if (!best) return `${map.title}: no numbers.`;
    return `${map.title}: mean ${short(sum / count)}; farthest from zero ${short(best.value)}, unit ${best.unit} at word ${best.t + 1}, ${words[best.t]}.`;
  });
  return `Heat map of the ${name}: ${words.length} words by ${maps[0]?.values[0]?.length ?? 0} units. ${parts.join(" ")}`;
}

export { scale };

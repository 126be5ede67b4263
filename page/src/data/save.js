// A picture or its data as a file.

/** Hand a file to the browser. */
function give(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export const saveJson = (name, data) =>
  give(`${name}.json`, new Blob([JSON.stringify(data, null, 1)], { type: "application/json" }));

/** Rows of cells; a cell that a spreadsheet would take for a formula is kept text. */
export function csv(rows) {
  const cell = (value) => {
    if (value === null || value === undefined) return "";
    if (typeof value === "number") return String(value);
    const text = /^[=+\-@\t\r]/.test(value) ? `'${value}` : String(value);
    return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };
  return rows.map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

export const saveCsv = (name, rows) => give(`${name}.csv`, new Blob([csv(rows)], { type: "text/csv" }));

export const saveSvg = (name, text) => give(`${name}.svg`, new Blob([text], { type: "image/svg+xml" }));

/** An SVG drawn at twice its size. */
export async function savePng(name, text, width, height) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [2 * width, 2 * height];
  const context = canvas.getContext("2d");
  context.scale(2, 2);
  context.drawImage(image, 0, 0, width, height);
  give(`${name}.png`, await new Promise((done) => canvas.toBlob(done, "image/png")));
}

const KEPT = ["fill", "stroke", "stroke-width", "stroke-dasharray", "opacity", "font-size", "font-family", "font-weight", "text-anchor", "dominant-baseline"];

/** An SVG of the page as a file of its own: what the style sheet said stands on each element. */
export function standalone(svg, title) {
  const copy = svg.cloneNode(true);
  const [originals, copies] = [svg.querySelectorAll("*"), copy.querySelectorAll("*")];
  originals.forEach((element, k) => {
    const style = getComputedStyle(element);
    for (const name of KEPT) copies[k].setAttribute(name, style.getPropertyValue(name));
    copies[k].removeAttribute("class");
    copies[k].removeAttribute("style");
  });
  copy.querySelectorAll("[data-passing]").forEach((element) => element.remove());
  const { width, height } = svg.viewBox.baseVal;
  copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
  copy.setAttribute("width", width);
  copy.setAttribute("height", height);
  const ground = document.createElementNS("http://www.w3.org/2000/svg", "rect");
  ground.setAttribute("width", width);
  ground.setAttribute("height", height);
  ground.setAttribute("fill", getComputedStyle(document.documentElement).getPropertyValue("--paper").trim());
  copy.prepend(ground);
  const name = document.createElementNS("http://www.w3.org/2000/svg", "title");
  name.textContent = title;
  copy.prepend(name);
  return { text: new XMLSerializer().serializeToString(copy), width, height };
}

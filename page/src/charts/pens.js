// The same drawing on a canvas or as SVG text: one pen each, with what the heat map needs and nothing more.

const FONT = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', 'DejaVu Sans', sans-serif";

export class CanvasPen {
  constructor(context) {
    this.context = context;
  }

  rect(x, y, width, height, fill) {
    this.context.fillStyle = fill;
    this.context.fillRect(x, y, width, height);
  }

  frame(x, y, width, height, stroke, thick = 1) {
    this.context.strokeStyle = stroke;
    this.context.lineWidth = thick;
    this.context.strokeRect(x, y, width, height);
  }

  text(x, y, said, fill, { size = 12, weight = 400, anchor = "start", room } = {}) {
    const c = this.context;
    c.font = `${weight} ${size}px ${FONT}`;
    c.fillStyle = fill;
    c.textBaseline = "middle";
    // "left" is left whatever way the word is read; "start" would turn with it.
    c.textAlign = { start: "left", middle: "center", end: "right" }[anchor];
    c.fillText(room ? fitted(said, room, (part) => c.measureText(part).width) : said, x, y);
  }

  clip(x, y, width, height, draw) {
    this.context.save();
    this.context.beginPath();
    this.context.rect(x, y, width, height);
    this.context.clip();
    draw();
    this.context.restore();
  }

  /** An image of one pixel a cell, each as large as a cell. */
  cells(image, from, rows, x, y, width, height) {
    this.context.imageSmoothingEnabled = false;
    this.context.drawImage(image, 0, from, image.width, rows, x, y, width, height);
  }
}

const escaped = (text) =>
  String(text).replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c]);

export class SvgPen {
  parts = [];

  rect(x, y, width, height, fill) {
    this.parts.push(`<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="${fill}"/>`);
  }

  frame(x, y, width, height, stroke, thick = 1) {
    this.parts.push(
      `<rect x="${x}" y="${y}" width="${width}" height="${height}" fill="none" stroke="${stroke}" stroke-width="${thick}"/>`,
    );
  }

  text(x, y, said, fill, { size = 12, weight = 400, anchor = "start", room } = {}) {
    const shown = room ? fitted(said, room, (part) => part.length * size * 0.58) : said;
    this.parts.push(
      `<text x="${x}" y="${y}" fill="${fill}" font-size="${size}" font-weight="${weight}" text-anchor="${anchor}" ` +
        `dominant-baseline="central">${escaped(shown)}</text>`,
    );
  }

  clip(x, y, width, height, draw) {
    draw();
  }

  cells(image, from, rows, x, y, width, height) {
    const part = document.createElement("canvas");
    [part.width, part.height] = [image.width, rows];
    part.getContext("2d").drawImage(image, 0, from, image.width, rows, 0, 0, image.width, rows);
    this.parts.push(
      `<image x="${x}" y="${y}" width="${width}" height="${height}" preserveAspectRatio="none" ` +
        `image-rendering="pixelated" href="${part.toDataURL("image/png")}"/>`,
    );
  }

  svg(width, height, title, paper) {
    return (
      `<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${height}" viewBox="0 0 ${width} ${height}" ` +
      `font-family="${FONT}"><title>${escaped(title)}</title><rect width="${width}" height="${height}" fill="${paper}"/>` +
      `${this.parts.join("")}</svg>`
    );
  }
}

function fitted(said, room, measure) {
  if (measure(said) <= room) return said;
  const letters = [...said];
  while (letters.length > 1 && measure(`${letters.join("")}…`) > room) letters.pop();
  return `${letters.join("")}…`;
}

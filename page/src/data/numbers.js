// Numbers as people read them, and as they are.

/** All digits that were measured. */
export const exact = (value) => (value === null || value === undefined ? "no number" : String(value));

/** Three significant digits, a real minus sign. */
export function short(value) {
  if (value === null || value === undefined || !Number.isFinite(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text = size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3)));
  return text.replace("-", "−");
}

/** Four decimals, always as wide: for numbers that stand below one another. */
export const fixed = (value) => (value === null ? "–" : value.toFixed(4).replace("-", "−"));

/** 12 345. */
export const many = (value) => value.toLocaleString("en");

export const percent = (value) => `${(100 * value).toFixed(value > 0.9995 || value < 0.0005 ? 2 : 1)} %`;

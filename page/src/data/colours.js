// Two scales: from closed to open, and from negative to positive with zero in the middle.
// Both can be read by colour-blind eyes: viridis, and orange to blue.

const SHARE = [
  [68, 1, 84],
  [72, 36, 117],
  [65, 68, 135],
  [53, 95, 141],
  [42, 120, 142],
  [33, 145, 140],
  [34, 168, 132],
  [68, 191, 112],
  [122, 209, 81],
  [189, 223, 38],
  [253, 231, 37],
];
const SIGNED = [
  [166, 72, 4],
  [217, 118, 22],
  [248, 172, 86],
  [252, 219, 178],
  [247, 247, 247],
  [199, 221, 240],
  [122, 178, 219],
  [51, 126, 186],
  [16, 78, 139],
];
const SIGNED_DARK = [
  [255, 190, 110],
  [240, 146, 48],
  [176, 96, 20],
  [98, 60, 26],
  [36, 39, 46],
  [28, 62, 94],
  [40, 104, 158],
  [86, 164, 222],
  [164, 214, 250],
];
const LEVELS = 255;
export const NOT_A_NUMBER = [227, 0, 140];

function palette(stops) {
  const colours = [];
  for (let k = 0; k < LEVELS; k++) {
    const at = (k / (LEVELS - 1)) * (stops.length - 1);
    const low = Math.min(Math.floor(at), stops.length - 2);
    colours.push([0, 1, 2].map((c) => Math.round(stops[low][c] + (at - low) * (stops[low + 1][c] - stops[low][c]))));
  }
  return colours;
}

const PALETTES = { share: palette(SHARE), signed: palette(SIGNED), signedDark: palette(SIGNED_DARK) };

/** A scale from values to [r, g, b]. */
export function scale(signed, [low, high], dark) {
  const colours = signed ? (dark ? PALETTES.signedDark : PALETTES.signed) : PALETTES.share;
  const span = high - low || 1;
  return (value) => {
    if (value === null || !Number.isFinite(value)) return NOT_A_NUMBER;
    return colours[Math.round(Math.min(1, Math.max(0, (value - low) / span)) * (LEVELS - 1))];
  };
}

export const css = ([r, g, b]) => `rgb(${r},${g},${b})`;

/** Whether black is easier to read on a colour than white. */
export function isLight(colour) {
  const linear = colour.map((c) => (c <= 10 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179;
}

/** One colour and one dash for each cell and run: told apart without colour too. */
export const LINES = [
  { colour: "var(--line-1)", dash: "" },
  { colour: "var(--line-2)", dash: "7 3" },
  { colour: "var(--line-3)", dash: "2 3" },
  { colour: "var(--line-4)", dash: "9 3 2 3" },
];

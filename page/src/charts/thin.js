// Long traces: the least and the greatest of each column of pixels, so that no peak is lost.

/** Points (x, y) in order, thinned to about two for each of `columns`. */
export function thin(points, columns) {
  if (points.length <= 2 * columns) return points;
  const kept = [];
  const each = points.length / columns;
  for (let column = 0; column < columns; column++) {
    const part = points.slice(Math.floor(column * each), Math.floor((column + 1) * each));
    let low = null;
    let high = null;
    for (const point of part) {
      if (point.y === null) continue;
      if (!low || point.y < low.y) low = point;
      if (!high || point.y > high.y) high = point;
    }
    if (!low) kept.push(part[0]);
    else if (low === high) kept.push(low);
    else kept.push(...(low.x < high.x ? [low, high] : [high, low]));
  }
  return kept;
}

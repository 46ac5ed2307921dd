/** What is measured in label maps, voxel by voxel. */

const LEAST = -1024; // HU; values beyond these are counted at the ends
const MOST = 3071;
const BARS = 40; // at most

/**
 * Where a label map is not 0.
 *
 * @param {Nifti} labels one byte a voxel
 * @returns {{places: Uint32Array, middle: number[]}} the voxels, by their places in the file; and
 *   their centre in voxels along each axis, or that of the grid where there are none
 */
export function labelled({ voxels, shape }) {
  const [nx, ny] = shape;
  const places = new Uint32Array(countOf(voxels));
  const sum = [0, 0, 0];
  let count = 0;
  for (let at = 0; count < places.length; at++) {
    if (voxels[at] === 0) continue;
    places[count++] = at;
    sum[0] += at % nx;
    sum[1] += Math.floor(at / nx) % ny;
    sum[2] += Math.floor(at / (nx * ny));
  }
  return { places, middle: shape.map((n, axis) => (count ? sum[axis] / count : (n - 1) / 2)) };
}

function countOf(voxels) {
  let count = 0;
  for (let at = 0; at < voxels.length; at++) count += voxels[at] !== 0;
  return count;
}

/**
 * The values of a CT at some places.
 *
 * @param {Nifti} ct
 * @param {Uint32Array} places
 * @returns {?object} null where there are none
 */
export function histogram({ voxels, slope, intercept }, places) {
  if (places.length === 0) return null;
  const counts = new Uint32Array(MOST - LEAST + 1);
  let total = 0;
  let squares = 0;
  for (const at of places) {
    const hu = Number(voxels[at]) * slope + intercept;
    total += hu;
    squares += hu * hu;
    counts[Math.min(Math.max(Math.round(hu), LEAST), MOST) - LEAST] += 1;
  }
  const mean = total / places.length;
  const deviation = Math.sqrt(Math.max(squares / places.length - mean * mean, 0));
  return { mean, deviation, ...binned(counts, places.length) };
}

/** Bars of whole HU from the 0.5th to the 99.5th percentile, and the median. */
function binned(counts, count) {
  const [low, median, high] = [0.005, 0.5, 0.995].map((part) => {
    let seen = 0;
    return counts.findIndex((n) => (seen += n) >= part * count);
  });
  const width = Math.ceil((high - low + 1) / BARS);
  const bars = [];
  for (let from = low; from <= high; from += width) {
    bars.push(counts.subarray(from, Math.min(from + width, high + 1)).reduce((a, b) => a + b, 0));
  }
  return { from: low + LEAST, to: high + LEAST, median: median + LEAST, width, bars };
}

/**
 * The Dice coefficient of two label maps on one grid.
 *
 * @returns {?number} 0 to 1; null where both are empty
 */
export function dice({ voxels: a }, { voxels: b }) {
  let both = 0;
  let sum = 0;
  for (let at = 0; at < a.length; at++) {
    const inA = a[at] !== 0;
    const inB = b[at] !== 0;
    both += inA && inB;
    sum += inA + inB;
  }
  return sum ? (2 * both) / sum : null;
}

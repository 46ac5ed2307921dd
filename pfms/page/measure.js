/** What is measured in label maps, voxel by voxel. */

const LEAST = -1024; // HU; values beyond these are counted at the ends
const MOST = 3071;
const BARS = 40; // at most

/**
 * The labels of a CT, in one pass.
 *
 * @param {Nifti} ct
 * @param {Nifti} labels on the same grid: 0, and 1 for the spleen
 * @returns {{middle: number[], histogram: ?object}} `middle` is their centre in voxels, or that of
 *   the grid where there are none; `histogram` is null then
 */
export function measure(ct, labels) {
  const [nx, ny, nz] = labels.shape;
  const { slope, intercept, voxels: values } = ct;
  const { voxels } = labels;
  const counts = new Uint32Array(MOST - LEAST + 1);
  const sum = [0, 0, 0];
  let count = 0;
  let total = 0;
  let squares = 0;
  let at = -1;
  for (let z = 0; z < nz; z++) {
    for (let y = 0; y < ny; y++) {
      for (let x = 0; x < nx; x++) {
        if (voxels[++at] === 0) continue;
        const hu = Number(values[at]) * slope + intercept;
        count += 1;
        total += hu;
        squares += hu * hu;
        counts[Math.min(Math.max(Math.round(hu), LEAST), MOST) - LEAST] += 1;
        sum[0] += x;
        sum[1] += y;
        sum[2] += z;
      }
    }
  }
  if (count === 0) return { middle: labels.shape.map((n) => (n - 1) / 2), histogram: null };
  const mean = total / count;
  const deviation = Math.sqrt(Math.max(squares / count - mean * mean, 0));
  return {
    middle: sum.map((n) => n / count),
    histogram: { mean, deviation, ...binned(counts, count) },
  };
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

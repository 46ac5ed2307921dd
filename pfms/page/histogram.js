/** The histogram of Hounsfield units, drawn. */
import { make } from './dom.js';

const WIDTH = 400; // of the drawing, in units of its own
const HEIGHT = 90;
const LETTERS = 16; // the height of the line below the bars

function draw(tag, attributes, ...children) {
  const node = document.createElementNS('http://www.w3.org/2000/svg', tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

/** @param {?object} histogram of `measure.js`; null where nothing is labelled */
export function histogramOf(histogram) {
  if (!histogram) return [make('p', { class: 'faint' }, 'No voxel is labelled as spleen, so there is no histogram.')];
  const { from, to, width, bars, mean, deviation, median } = histogram;
  const highest = Math.max(...bars);
  const step = WIDTH / bars.length;
  const words = `mean ${mean.toFixed(0)} HU, standard deviation ${deviation.toFixed(0)}, median ${median}`;
  const rects = bars.map((count, index) => {
    const height = (HEIGHT * count) / highest;
    return draw('rect', { x: index * step, y: HEIGHT - height, width: step * 0.9, height });
  });
  const label = `Histogram of the values in the spleen: ${words}`;
  const picture = draw(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT + LETTERS}`, role: 'img', 'aria-label': label },
    ...rects,
    draw('text', { x: 0, y: HEIGHT + LETTERS - 3 }, `${from} HU`),
    draw('text', { x: WIDTH, y: HEIGHT + LETTERS - 3, 'text-anchor': 'end' }, `${to} HU`),
  );
  const said = `In the spleen: ${words}. Bars of ${width} HU, without the lowest and highest 0.5 % of the voxels.`;
  return [picture, make('p', { class: 'faint' }, said)];
}

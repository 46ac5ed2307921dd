/** The result of a run, to be looked through: NiiVue and its controls. */
import { query } from './api.js';
import { byId, make, setText } from './dom.js';
import { histogramOf } from './histogram.js';
import { dice, histogram, labelled } from './measure.js';
import { fetchNifti } from './nifti.js';
import { asProblem, Problem } from './problem.js';
import { graphics, Scene, VIEWS, WINDOWS } from './scene.js';
import { showTrouble } from './trouble.js';
import { millilitres, moment } from './words.js';

const MOST = 100; // runs of a volume that can be chosen for a comparison, the newest ones

const NOT_BUILT = new Problem({
  title: 'There is no viewer on this server, only a picture',
  detail: 'It is built with npm, which was missing or failed when pfms was installed.',
  remedy: 'Ask the operator to install npm and to run make viewer. The segmentation can be downloaded.',
});
const NO_WEBGL = new Problem({
  title: 'This browser cannot show the viewer, only a picture',
  detail: 'It has no WebGL 2, or it is switched off.',
  remedy: 'Switch on hardware acceleration in the settings of the browser, or use another one.',
});
const TOO_MUCH = new Problem({
  title: 'The graphics of this computer gave up',
  detail: 'The browser took the viewer away, which happens when graphics memory runs out.',
  remedy: 'Close other tabs and reload the page. The segmentation can be downloaded.',
});

/** Where a place is, by the labels of one run or of two. */
function inside(label, other) {
  if (other === undefined) return label ? ', in the spleen' : '';
  if (label && other) return ', in the spleen of both runs';
  return label ? ', in the spleen of this run' : other ? ', in the spleen of the other run' : '';
}

const painted = () => new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));

export class Viewer {
  #api;
  #scene = null;
  #graphics = null;
  #shown = null; // a job
  #images = null; // its CT and labels, and the middle of the spleen
  #others = [];
  #stop = new AbortController();
  #turn = Promise.resolve();

  constructor(api) {
    this.#api = api;
    const option = ([value, text]) => make('option', { value }, text);
    byId('viewer-view').append(...Object.entries(VIEWS).map(option));
    byId('viewer-window').append(
      ...Object.entries(WINDOWS).map(([key, { name, level, width }]) => option([key, `${name} (${level}/${width})`])),
    );
    byId('viewer-view').addEventListener('change', () => this.#adjust('view'));
    byId('viewer-window').addEventListener('change', () => this.#adjust('window'));
    byId('viewer-opacity').addEventListener('input', () => this.#adjust('opacity'));
    byId('viewer-other').addEventListener('change', () => this.#compare());
    byId('viewer-whole').addEventListener('click', () => this.#showAll());
    byId('viewer-canvas').addEventListener('webglcontextlost', () => showTrouble(byId('viewer-trouble'), TOO_MUCH));
  }

  /** Show a job that has succeeded, and whose volumes are there. */
  async show(job) {
    if (this.#shown?.id === job.id) return;
    this.clear();
    this.#shown = job;
    const { signal } = (this.#stop = new AbortController());
    const missing = this.#missing();
    if (missing) {
      showTrouble(byId('viewer-trouble'), missing);
      return;
    }
    setText(byId('viewer-state'), 'The viewer is being loaded …');
    try {
      const fetched = (what) => fetchNifti(this.#api, `jobs/${job.id}/${what}`, signal);
      const [ct, { labels, places, middle }] = await Promise.all([
        fetched('volume'),
        // While the CT, which is larger, is still being unpacked.
        fetched('result').then((labels) => ({ labels, ...labelled(labels) })),
        this.#findOthers(job, signal),
      ]);
      this.#images = { ct, labels, middle };
      await this.#inTurn(() => !signal.aborted && this.#open());
      if (signal.aborted) return;
      byId('viewer-histogram').replaceChildren(...histogramOf(histogram(ct, places)));
      setText(byId('viewer-volume'), `Spleen ${millilitres(job.segmentation.spleen_ml)}`);
      setText(byId('viewer-state'), '');
    } catch (error) {
      if (signal.aborted) return;
      this.clear();
      this.#shown = job;
      showTrouble(byId('viewer-trouble'), asProblem(error));
    }
  }

  #missing() {
    if (document.documentElement.dataset.viewer !== 'yes') return NOT_BUILT;
    this.#graphics ??= graphics();
    return this.#graphics ? null : NO_WEBGL;
  }

  /** One after the other: the scene is one. */
  #inTurn(action) {
    this.#turn = this.#turn.catch(() => {}).then(action);
    return this.#turn;
  }

  async #open() {
    byId('viewer').hidden = false; // a canvas that cannot be seen has no size
    if (!this.#scene) {
      if (this.#graphics.software) byId('viewer-view').value = 'planes';
      this.#scene = await Scene.on(byId('viewer-canvas'), (place) => this.#tell(place));
      for (const what of ['view', 'window', 'opacity']) this.#adjust(what);
    }
    await this.#draw(this.#graphics);
  }

  async #draw(most) {
    const { ct, labels, middle } = this.#images;
    const steps = await this.#scene.show(ct, labels, middle, most);
    const thinned = steps.some((step) => step > 1);
    byId('viewer-thinned').hidden = !thinned;
    if (!thinned) return;
    const drawn = `To be quick, the viewer draws one voxel of ${steps.join(' × ')}`;
    setText(byId('viewer-drawn'), `${drawn}. Everything is measured in all voxels.`);
  }

  async #showAll() {
    const { signal } = this.#stop;
    setText(byId('viewer-state'), 'Every voxel is being drawn: this may take a minute …');
    byId('viewer-other').value = '';
    setText(byId('viewer-difference'), '');
    await painted(); // the page stands still afterwards
    try {
      await this.#inTurn(() => !signal.aborted && this.#draw({ ...this.#graphics, voxels: Infinity }));
    } catch (error) {
      if (!signal.aborted) showTrouble(byId('viewer-trouble'), asProblem(error));
    }
    if (!signal.aborted) setText(byId('viewer-state'), '');
  }

  #adjust(what) {
    if (!this.#scene) return; // once it is there, it is told all
    const { value } = byId(`viewer-${what}`);
    this.#scene[what] = what === 'opacity' ? Number(value) / 100 : value;
  }

  /** The other runs of its volume, for a person to choose from. */
  async #findOthers({ id, volume }, signal) {
    const asked = query({ state: 'succeeded', volume: volume.sha256, limit: MOST });
    const { jobs } = await this.#api.json(`jobs?${asked}`, { signal });
    this.#others = jobs.filter((job) => job.id !== id && !job.purged_at);
    const options = this.#others.map((job) =>
      make('option', { value: job.id }, `${job.model.modelID}, ${moment(job.created_at)}`),
    );
    byId('viewer-other').replaceChildren(make('option', { value: '' }, 'No other run'), ...options);
    byId('viewer-compare').hidden = options.length === 0;
  }

  async #compare() {
    const { signal } = this.#stop;
    const { value: id } = byId('viewer-other');
    const result = byId('viewer-difference');
    setText(result, id ? 'The other run is being loaded …' : '');
    showTrouble(byId('viewer-trouble'), null);
    try {
      const labels = id && (await fetchNifti(this.#api, `jobs/${id}/result`, signal));
      await this.#inTurn(async () => {
        if (signal.aborted || byId('viewer-other').value !== id) return;
        await this.#scene.compare(labels || null);
        setText(result, id ? this.#difference(id, dice(this.#images.labels, labels)) : '');
      });
    } catch (error) {
      if (signal.aborted || byId('viewer-other').value !== id) return;
      setText(result, '');
      showTrouble(byId('viewer-trouble'), asProblem(error));
    }
  }

  #difference(id, overlap) {
    const other = this.#others.find((job) => job.id === id);
    const [a, b] = [this.#shown, other].map((job) => job.segmentation.spleen_ml);
    const less = b < a ? 'less' : 'more';
    if (overlap === null) return 'Both runs found no spleen, so there is no Dice coefficient.';
    return (
      `Dice ${overlap.toFixed(4)}. The other run has ${millilitres(b)}, ${millilitres(Math.abs(a - b))} ` +
      `${less} than this one. Green: only this one; orange: only the other one; yellow: both.`
    );
  }

  #tell({ mm, values: [hu, label, other] }) {
    const axes = [['L', 'R'], ['P', 'A'], ['I', 'S']];
    const where = mm.map((n, axis) => `${axes[axis][n < 0 ? 0 : 1]} ${Math.abs(n).toFixed(1)}`);
    setText(byId('viewer-place'), `${Math.round(hu)} HU${inside(label, other)} at ${where.join(', ')} mm`);
  }

  clear() {
    if (this.#shown === null) return;
    this.#stop.abort(new Error('another run'));
    this.#shown = null;
    this.#images = null; // they are large
    byId('viewer').hidden = true;
    byId('viewer-other').replaceChildren();
    setText(byId('viewer-difference'), '');
    setText(byId('viewer-state'), '');
    showTrouble(byId('viewer-trouble'), null);
    this.#inTurn(() => this.#scene?.clear());
  }
}

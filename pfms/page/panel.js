/** One run: its picture, its facts, its files, its command and its log. */
import { byId, make, save, setText } from './dom.js';
import { asProblem, Problem } from './problem.js';
import { showTrouble } from './trouble.js';
import { bytes, commandLine, duration, isActive, millilitres, moment, stateWord, stemOf, summary } from './words.js';

const LOG_MS = 2000;

export class Panel {
  #desk;
  #job = null;
  #state = '';
  #logTimer = 0;

  /** @param desk `api`, `pictures`, `nameOf(job)`, `fileNameOf(job)`, `show(job)`, `clear()` */
  constructor(desk) {
    this.#desk = desk;
    byId('download').addEventListener('click', () => this.#download('result', '-spleen.nii.gz'));
    byId('bundle').addEventListener('click', () => this.#download('bundle', '.zip'));
    byId('log-box').addEventListener('toggle', () => this.#refreshLog());
  }

  /** Show a job that was chosen, or what has become of the one that is shown. */
  show(job) {
    const other = job.id !== this.#job?.id;
    this.#job = job;
    const section = byId('run');
    section.hidden = false;
    if (other) {
      showTrouble(byId('run-trouble'), null);
      setText(byId('log'), '');
      this.#state = '';
    }
    setText(byId('run-title'), this.#desk.nameOf(job));
    setText(byId('run-summary'), `${stateWord(job.state)}. ${summary(job)}`);
    const bar = byId('run-bar');
    bar.hidden = job.state !== 'running';
    if (job.progress.fraction != null) bar.value = job.progress.fraction;
    const state = `${job.state} ${job.purged_at}`;
    if (state === this.#state) return;
    this.#state = state;
    this.#showFacts(job);
    this.#showEnd(job);
    this.#refreshLog();
  }

  /** Nothing is chosen, or what was chosen is not there. */
  hide() {
    this.#job = null;
    byId('run').hidden = true;
    this.#desk.clear();
  }

  #showFacts(job) {
    const { volume, segmentation } = job;
    const facts = [
      ['Spleen', segmentation && `${millilitres(segmentation.spleen_ml)}, ${segmentation.spleen_voxels.toLocaleString()} voxels`],
      ['Model', job.model.modelID],
      ['Volume', `${volume.shape.join(' × ')} voxels of ${volume.spacing.map((mm) => +mm.toFixed(3)).join(' × ')} mm, ${volume.orientation}, ${bytes(volume.size)}`],
      ['Values', `${Math.round(volume.minimum)} to ${Math.round(volume.maximum)}`],
      ['Sent', moment(job.created_at)],
      ['Run', job.seconds != null && `${duration(job.seconds)} on ${job.device}`],
      ['Memory', job.peak_memory_bytes && bytes(job.peak_memory_bytes)],
      ['By', job.owner],
      ['Rerun of', job.rerun_of && make('a', { href: `#job=${job.rerun_of}` }, job.rerun_of)],
      ['Job', job.id],
      ['Folder', job.folder],
    ];
    byId('facts').replaceChildren(
      ...facts
        .filter(([, fact]) => fact)
        .flatMap(([name, fact]) => [make('dt', {}, name), make('dd', {}, fact)]),
    );
    const warnings = [...new Set([...volume.warnings, ...job.warnings])];
    byId('warnings').replaceChildren(...warnings.map((text) => make('li', {}, text)));
    byId('warnings').hidden = warnings.length === 0;
    setText(byId('command'), job.command.length ? commandLine(job.command) : 'It has not been started.');
  }

  #showEnd(job) {
    const done = job.state === 'succeeded' && !job.purged_at;
    byId('download').hidden = !done;
    byId('bundle').hidden = isActive(job);
    if (job.error) showTrouble(byId('run-trouble'), new Problem(job.error));
    if (done) this.#desk.show(job);
    else this.#desk.clear();
  }

  async #download(what, ending) {
    const job = this.#job;
    const name = this.#desk.fileNameOf(job);
    try {
      const blob = await this.#desk.api.blob(`jobs/${job.id}/${what}`);
      save(blob, `${name ? stemOf(name) : job.id}${ending}`);
    } catch (error) {
      showTrouble(byId('run-trouble'), asProblem(error));
    }
  }

  /** Fetch the log while it can be seen, and again for as long as the run may add to it. */
  async #refreshLog() {
    clearTimeout(this.#logTimer);
    const job = this.#job;
    if (!job || !byId('log-box').open) return;
    try {
      const text = await (await this.#desk.api.call(`jobs/${job.id}/log`)).text();
      if (this.#job?.id !== job.id) return;
      setText(byId('log'), text || 'It has printed nothing.');
    } catch (error) {
      setText(byId('log'), `${asProblem(error).title}.`);
    }
    if (isActive(this.#job ?? job)) {
      this.#logTimer = setTimeout(() => this.#refreshLog(), LOG_MS);
    }
  }
}

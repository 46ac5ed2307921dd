/** The files that are being sent, two at a time, and those that were refused. */
import { query } from './api.js';
import { announce, make, setText } from './dom.js';
import { asProblem, isTemporary, Problem } from './problem.js';
import { troubleBox } from './trouble.js';
import { bytes } from './words.js';

const AT_ONCE = 2; // of the 6 connections that a browser opens to a server

/** A key that no other upload has; `crypto.randomUUID` is not there on plain HTTP. */
function newKey() {
  const words = crypto.getRandomValues(new Uint32Array(4));
  return `page-${Array.from(words, (word) => word.toString(16).padStart(8, '0')).join('')}`;
}

class Upload {
  constructor(file, model, list) {
    Object.assign(this, { file, model, list, key: newKey(), stop: new AbortController() });
    this.state = make('span', { class: 'state' }, 'Waiting to be sent');
    this.bar = make('progress', { max: 1, value: 0, 'aria-label': `Sending ${file.name}` });
    this.trouble = make('div', { role: 'alert' });
    this.row = make(
      'li',
      {},
      make('p', {}, make('strong', {}, file.name), ` (${bytes(file.size)}) `, this.state),
      this.bar,
      this.trouble,
      (this.cancel = make(
        'button',
        { 'aria-label': `Do not send ${file.name}`, onclick: () => this.leave() },
        'Cancel',
      )),
    );
  }

  async send(api) {
    this.bar.hidden = this.cancel.hidden = false;
    this.trouble.replaceChildren();
    const path = `spleenseg/NIfTIinference?${query({ modelID: this.model })}`;
    // With the key, a second try after a lost connection joins the first one's job.
    const headers = { Prefer: 'respond-async', 'Idempotency-Key': this.key };
    const onProgress = (fraction) => {
      this.bar.value = fraction;
      setText(this.state, fraction < 1 ? `Sending, ${Math.floor(fraction * 100)} %` : 'Being checked');
    };
    for (;;) {
      try {
        const options = { headers, onProgress, signal: this.stop.signal };
        return await api.send(path, this.file, options);
      } catch (error) {
        const problem = asProblem(error);
        if (this.stop.signal.aborted || !isTemporary(problem)) throw error;
        await this.#wait(problem);
      }
    }
  }

  async #wait(problem) {
    const seconds = Math.min(Math.max(problem.retryAfter, 2), 60);
    setText(this.state, `${problem.title}: next try in ${seconds} s`);
    await new Promise((resolve, reject) => {
      setTimeout(resolve, seconds * 1000);
      this.stop.signal.addEventListener('abort', () => reject(this.stop.signal.reason));
    });
  }

  refused(problem, again) {
    this.bar.hidden = this.cancel.hidden = true;
    setText(this.state, 'was not accepted');
    const buttons = [
      make('button', { onclick: again, 'aria-label': `Try ${this.file.name} again` }, 'Try again'),
      make('button', { onclick: () => this.leave(), 'aria-label': `Dismiss ${this.file.name}` }, 'Dismiss'),
    ];
    this.trouble.replaceChildren(troubleBox(problem, ...buttons));
  }

  leave() {
    this.stop.abort(new Error('left'));
    this.row.remove();
  }
}

export class Uploads {
  #queue = [];
  #sending = 0;

  /**
   * @param api
   * @param {HTMLElement} list a `ul` for the rows
   * @param {(job, file: File) => void} accepted called with each new job
   */
  constructor(api, list, accepted) {
    Object.assign(this, { api, list, accepted });
  }

  /** Send files to a model; `folders` are names of what was dropped and is no file. */
  add(files, model, folders = []) {
    for (const file of files) {
      const upload = new Upload(file, model, this.list);
      this.list.append(upload.row);
      this.#queue.push(upload);
    }
    for (const name of folders) this.#refuseFolder(name);
    this.#next();
  }

  #refuseFolder(name) {
    const row = make('li', {});
    const problem = new Problem({
      title: `${name} is a folder`,
      remedy:
        'Open it and drop the NIfTI files in it. A folder of DICOM files has to be converted first, ' +
        'for example with dcm2niix.',
    });
    const dismiss = { onclick: () => row.remove(), 'aria-label': `Dismiss ${name}` };
    const box = troubleBox(problem, make('button', dismiss, 'Dismiss'));
    row.append(make('div', { role: 'alert' }, box));
    this.list.append(row);
  }

  #next() {
    while (this.#sending < AT_ONCE && this.#queue.length > 0) this.#send(this.#queue.shift());
  }

  async #send(upload) {
    if (upload.stop.signal.aborted) return;
    this.#sending += 1;
    try {
      const job = await upload.send(this.api);
      upload.row.remove();
      this.accepted(job, upload.file);
    } catch (error) {
      if (!upload.stop.signal.aborted) {
        const problem = asProblem(error);
        announce(`${upload.file.name} was not accepted: ${problem.title}.`);
        upload.refused(problem, () => {
          this.#queue.push(upload);
          this.#next();
        });
      }
    } finally {
      this.#sending -= 1;
      this.#next();
    }
  }
}

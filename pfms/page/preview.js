/** The result of a run as the server draws it. */
import { byId, make } from './dom.js';
import { asProblem } from './problem.js';
import { troubleBox } from './trouble.js';
import { summary } from './words.js';

export class Preview {
  #pictures;
  #shown = null;

  constructor(pictures) {
    this.#pictures = pictures;
  }

  async show(job) {
    if (this.#shown === job.id) return;
    this.#shown = job.id;
    const place = byId('picture');
    place.replaceChildren(make('p', {}, 'The picture is being drawn …'));
    try {
      const src = await this.#pictures.url(`jobs/${job.id}/preview.png`);
      if (this.#shown !== job.id) return;
      const alt = `Axial, coronal and sagittal slice with the outline of the spleen. ${summary(job)}.`;
      place.replaceChildren(make('img', { src, alt }));
    } catch (error) {
      if (this.#shown === job.id) place.replaceChildren(troubleBox(asProblem(error)));
    }
  }

  clear() {
    this.#shown = null;
    byId('picture').replaceChildren();
  }
}

/** The choice of a model, and the form that adds one. */
import { query } from './api.js';
import { announce, byId, make, setText } from './dom.js';
import { asProblem, Problem } from './problem.js';
import { showTrouble } from './trouble.js';
import { modelIdOf } from './words.js';

export class Models extends EventTarget {
  #api;
  #names = null;
  #select = byId('model');

  constructor(api) {
    super();
    this.#api = api;
    byId('add-model').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#add();
    });
    byId('model-file').addEventListener('change', () => {
      const [file] = byId('model-file').files;
      if (file && !byId('model-id').value) byId('model-id').value = modelIdOf(file.name);
    });
  }

  get names() {
    return this.#names ?? [];
  }

  get chosen() {
    return this.#select.value;
  }

  /** Ask for the models, and keep the choice. */
  async refresh(choose = this.#select.value) {
    const { models } = await this.#api.json('spleenseg/modelpth');
    if (!this.#names) byId('adding').open = models.length === 0;
    this.#names = models;
    this.#select.replaceChildren(
      ...(models.length ? [] : [make('option', { value: '' }, 'There is no model yet')]),
      ...models.map((name) => make('option', { value: name, selected: name === choose }, name)),
    );
    this.dispatchEvent(new Event('change'));
  }

  async #add() {
    const [file] = byId('model-file').files;
    const name = byId('model-id').value.trim();
    const trouble = byId('model-trouble');
    const state = byId('model-state');
    const button = byId('add-model').querySelector('button');
    showTrouble(trouble, null);
    setText(state, '');
    if (!file || !name) {
      const remedy = 'Choose a .pth file, and give it a name of letters, digits, dots and dashes.';
      showTrouble(trouble, new Problem({ title: 'A model needs a file and a name', remedy }));
      return;
    }
    button.disabled = true;
    try {
      const onProgress = (fraction) =>
        setText(state, fraction < 1 ? `Sending, ${Math.floor(fraction * 100)} %` : 'Being checked');
      const path = `spleenseg/modelpth?${query({ modelID: name })}`;
      const stored = await this.#api.send(path, file, { onProgress });
      setText(state, [`${stored.modelID} is there.`, ...stored.warnings].join(' '));
      announce(`The model ${stored.modelID} was added`);
      byId('add-model').reset();
      await this.refresh(stored.modelID);
    } catch (error) {
      setText(state, '');
      showTrouble(trouble, asProblem(error));
    } finally {
      button.disabled = false;
    }
  }
}

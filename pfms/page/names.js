/** The names of the files that were sent from this tab: pfms does not learn them. */

export class Names {
  #store;
  #names;

  /** @param store an object with `get()` and `set(text)` */
  constructor(store) {
    this.#store = store;
    this.#names = JSON.parse(store.get() || '{}');
  }

  get(id) {
    return this.#names[id];
  }

  set(id, name) {
    if (!name) return;
    this.#names[id] = name;
    this.#store.set(JSON.stringify(this.#names));
  }
}

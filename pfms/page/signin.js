/** The token, where the server asks for one. */
import { byId } from './dom.js';
import { asProblem } from './problem.js';
import { showTrouble } from './trouble.js';

export class SignIn extends EventTarget {
  #api;

  constructor(api) {
    super();
    this.#api = api;
    api.addEventListener('unauthorized', () => this.#ask());
    byId('forget').hidden = !api.token;
    byId('forget').addEventListener('click', () => {
      api.token = '';
      location.reload(); // nothing that was fetched with it stays
    });
    byId('sign-in').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#try(byId('token').value.trim());
    });
  }

  get isAsking() {
    return !byId('signing-in').hidden;
  }

  #ask() {
    if (this.isAsking) return;
    byId('signing-in').hidden = false;
    byId('desk').hidden = true;
    byId('token').focus();
  }

  async #try(token) {
    const before = this.#api.token;
    this.#api.token = token;
    try {
      await this.#api.call('about'); // needs a token, of any scope
    } catch (error) {
      this.#api.token = before;
      showTrouble(byId('sign-in-trouble'), asProblem(error));
      return;
    }
    showTrouble(byId('sign-in-trouble'), null);
    byId('token').value = '';
    byId('signing-in').hidden = true;
    byId('desk').hidden = false;
    byId('forget').hidden = false;
    this.dispatchEvent(new Event('change'));
  }
}

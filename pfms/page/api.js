/** The calls of pfms (docs/api.md), with the token of this tab. */
import { problemOf, unreachable } from './problem.js';

// The page's own modules are at ROOT/page/VERSION/.
export const ROOT = new URL('../../', import.meta.url);
const BASE = new URL('api/v1/', ROOT);

// Says that a script calls: at a 401, a browser would otherwise ask for a password by itself.
const SCRIPT = { 'X-Requested-With': 'XMLHttpRequest' };

export const query = (parameters) =>
  new URLSearchParams(Object.entries(parameters).filter(([, value]) => value)).toString();

export class Api extends EventTarget {
  #store;

  /** @param store where the token is kept: an object with `get()` and `set(text)` */
  constructor(store) {
    super();
    this.#store = store;
  }

  get token() {
    return this.#store.get();
  }

  set token(text) {
    this.#store.set(text);
  }

  #headers(more = {}) {
    const known = this.token ? { Authorization: `Bearer ${this.token}` } : {};
    return { ...SCRIPT, ...known, ...more };
  }

  #failed(problem, token) {
    // An answer to a call from before the token was given says nothing about the token.
    if (problem.status === 401 && token === this.token) this.dispatchEvent(new Event('unauthorized'));
    return problem;
  }

  /**
   * Make a call.
   *
   * @param {string} path below `/api/v1/`
   * @returns {Promise<Response>} one that is good
   * @throws {Problem}
   */
  async call(path, { headers, ...options } = {}) {
    const { token } = this;
    let response;
    try {
      response = await fetch(new URL(path, BASE), { ...options, headers: this.#headers(headers) });
    } catch (error) {
      throw options.signal?.aborted ? error : unreachable();
    }
    if (response.ok) return response;
    const text = await response.text();
    throw this.#failed(problemOf(response.status, text, response.headers.get('Retry-After')), token);
  }

  async json(path, options) {
    return (await this.call(path, options)).json();
  }

  async blob(path, options) {
    return (await this.call(path, options)).blob();
  }

  /**
   * Send a file as a form. Its name stays here: it may be that of a patient.
   *
   * @param {(fraction: number) => void} onProgress
   * @returns {Promise<any>} the body of the answer
   * @throws {Problem}
   */
  async send(path, file, { headers, onProgress, signal } = {}) {
    const { token } = this;
    const form = new FormData();
    form.append('file', file, 'file');
    const request = new XMLHttpRequest(); // fetch does not tell how much has been sent
    const done = new Promise((resolve, reject) => {
      request.onload = resolve;
      request.onerror = () => reject(unreachable());
      request.onabort = () => reject(signal.reason);
    });
    request.upload.onprogress = (event) => onProgress?.(event.loaded / (event.total || 1));
    signal?.addEventListener('abort', () => request.abort());
    request.open('POST', new URL(path, BASE));
    for (const [name, value] of Object.entries(this.#headers(headers))) {
      request.setRequestHeader(name, value);
    }
    request.send(form);
    await done;
    const { status, responseText } = request;
    if (status >= 200 && status < 300) return JSON.parse(responseText);
    throw this.#failed(problemOf(status, responseText, request.getResponseHeader('Retry-After')), token);
  }
}

/** A text that is kept in this tab, and in memory where the browser does not let us. */
export class TabStore {
  #text = '';

  constructor(name) {
    this.name = `pfms ${ROOT.pathname} ${name}`;
  }

  get() {
    try {
      return sessionStorage.getItem(this.name) ?? '';
    } catch {
      return this.#text;
    }
  }

  set(text) {
    this.#text = text;
    try {
      sessionStorage.setItem(this.name, text);
    } catch {
      // In memory, then.
    }
  }
}

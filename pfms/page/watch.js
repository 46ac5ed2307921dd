/** Keeps the jobs that are shown up to date. */
import { query } from './api.js';
import { eventsOf } from './events.js';
import { asProblem } from './problem.js';
import { isActive } from './words.js';

const PAGE = 30; // jobs that are shown at first, and more at each step
const MOST = 1000; // that the server gives at once
const BUSY_MS = 1500;
const IDLE_MS = 10_000;
// A browser opens 6 connections to a server, for all of its tabs: some must be left for calls.
const STREAMS = 2;

/**
 * Asks for the list now and then, and follows the events of the first runs in it.
 *
 * Events: `change` when jobs have changed; `trouble` when the server does not answer as it should
 * (`problem` says why, null once it is over).
 */
export class Watch extends EventTarget {
  #api;
  #streams = new Map();
  #jobs = new Map();
  #shown = [];
  #asked = 0;
  #timer = 0;
  filter = { state: '', modelID: '' };
  limit = PAGE;
  more = false;
  problem = null;
  pinned = null; // the ID of a job that is kept up to date, in the list or not

  constructor(api) {
    super();
    this.#api = api;
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) this.#stopStreams();
      else this.refresh();
    });
  }

  /** The jobs of the list, newest first. */
  get jobs() {
    return this.#shown.map((id) => this.#jobs.get(id));
  }

  get(id) {
    return this.#jobs.get(id);
  }

  #schedule() {
    clearTimeout(this.#timer);
    if (document.hidden || this.problem?.status === 401) return; // until there is a token
    const busy = this.problem || [...this.#jobs.values()].some(isActive);
    this.#timer = setTimeout(() => this.refresh(), busy ? BUSY_MS : IDLE_MS);
  }

  /**
   * Ask for the list now, and from then on while the page can be seen; of several calls at a
   * time, the last one counts.
   */
  async refresh() {
    const asked = ++this.#asked;
    try {
      const list = await this.#api.json(`jobs?${query({ ...this.filter, limit: this.limit })}`);
      const pinned = this.pinned;
      const listed = !pinned || list.jobs.some(({ id }) => id === pinned);
      const other = listed ? null : await this.#lookUp(pinned);
      if (asked !== this.#asked) return;
      this.#take(list, other);
      this.#tell(null);
    } catch (error) {
      if (asked === this.#asked) this.#tell(asProblem(error));
    }
    this.#schedule();
  }

  async #lookUp(id) {
    try {
      return await this.#api.json(`jobs/${encodeURIComponent(id)}`);
    } catch (error) {
      if (error.status === 404) return null; // removed
      throw error;
    }
  }

  #take({ jobs, next }, other) {
    this.#shown = jobs.map(({ id }) => id);
    this.#jobs = new Map([...jobs, other].filter(Boolean).map((job) => [job.id, job]));
    this.more = Boolean(next) && this.limit < MOST;
    const running = [...this.#jobs.values()].filter(({ state }) => state === 'running');
    for (const { id } of running.slice(0, STREAMS)) this.#follow(id);
    this.dispatchEvent(new Event('change'));
  }

  #tell(problem) {
    if (problem === null && this.problem === null) return;
    this.problem = problem;
    this.dispatchEvent(new Event('trouble'));
  }

  showMore() {
    this.limit = Math.min(this.limit + PAGE, MOST);
    return this.refresh();
  }

  choose(filter) {
    this.filter = filter;
    this.limit = PAGE;
    return this.refresh();
  }

  async #follow(id) {
    if (this.#streams.size >= STREAMS || this.#streams.has(id)) return;
    const ended = new AbortController();
    this.#streams.set(id, ended);
    try {
      for await (const { event, data } of eventsOf(this.#api, id, ended.signal)) {
        const job = this.#jobs.get(id);
        if (event === 'state' || !job) {
          if (data.state !== 'running') this.refresh();
        } else if (job.state === 'running') {
          this.#jobs.set(id, { ...job, progress: { ...job.progress, ...data } });
          this.dispatchEvent(new Event('change'));
        }
      }
    } catch {
      // The list still tells how far it is, and the next one leads back here.
    } finally {
      this.#streams.delete(id);
    }
  }

  #stopStreams() {
    for (const ended of this.#streams.values()) ended.abort();
  }
}

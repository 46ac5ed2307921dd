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
  #wake = () => {};
  filter = { state: '', modelID: '' };
  limit = PAGE;
  more = false;
  problem = null;
  pinned = null; // the ID of a job that is kept up to date, in the list or not

  constructor(api) {
    super();
    this.#api = api;
  }

  /** The jobs of the list, newest first. */
  get jobs() {
    return this.#shown.map((id) => this.#jobs.get(id));
  }

  get(id) {
    return this.#jobs.get(id);
  }

  /** Ask now and then, for as long as the page is open; less often while nobody looks. */
  async run() {
    document.addEventListener('visibilitychange', () => this.#wake());
    for (;;) {
      if (!document.hidden) await this.refresh();
      if (document.hidden) this.#stopStreams();
      const busy = [...this.#jobs.values()].some(isActive) || this.problem;
      await new Promise((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, busy && !document.hidden ? BUSY_MS : IDLE_MS);
      });
    }
  }

  /** Ask for the list now; of several calls at a time, the last one counts. */
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

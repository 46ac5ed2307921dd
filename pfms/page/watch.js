/** Keeps the jobs that are shown up to date: the list of the server, newest first. */
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

/** Whether a job comes after another in the list. */
const isOlder = (job, other) =>
  job.created_at < other.created_at || (job.created_at === other.created_at && job.id < other.id);

/**
 * Asks for the list now and then, and follows the events of the first runs in it. Of the list, it
 * asks for the first page again, and for more as long as a job beyond it has not ended.
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
  #cursor = null; // of the jobs that are older than those of the list; null if there are none
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

  /** Whether there are older ones. */
  get more() {
    return this.#cursor !== null;
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
      const reach = 1 + this.jobs.findLastIndex(isActive);
      const limit = Math.min(Math.max(reach, PAGE), MOST);
      const list = await this.#api.json(`jobs?${query({ ...this.filter, limit })}`);
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
    const older = next ? this.jobs.filter((job) => isOlder(job, jobs.at(-1))) : [];
    if (older.length === 0) this.#cursor = next;
    this.#hold([...jobs, ...older], other);
  }

  #hold(jobs, other) {
    this.#shown = jobs.map(({ id }) => id);
    this.#jobs = new Map([...jobs, other].filter(Boolean).map((job) => [job.id, job]));
    const running = [...this.#jobs.values()].filter(({ state }) => state === 'running');
    for (const { id } of running.slice(0, STREAMS)) this.#follow(id);
    this.dispatchEvent(new Event('change'));
  }

  #tell(problem) {
    if (problem === null && this.problem === null) return;
    this.problem = problem;
    this.dispatchEvent(new Event('trouble'));
  }

  async showMore() {
    const { filter } = this;
    const cursor = this.#cursor;
    try {
      const { jobs, next } = await this.#api.json(`jobs?${query({ ...filter, limit: PAGE, cursor })}`);
      if (filter !== this.filter || cursor !== this.#cursor) return; // another list, or asked twice
      this.#cursor = next;
      this.#hold([...this.jobs, ...jobs], this.#jobs.get(this.pinned));
    } catch (error) {
      this.#tell(asProblem(error));
    }
  }

  choose(filter) {
    this.filter = filter;
    this.#shown = [];
    this.#cursor = null;
    return this.refresh();
  }

  /** A job that has been removed. */
  forget(id) {
    this.#shown = this.#shown.filter((other) => other !== id);
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

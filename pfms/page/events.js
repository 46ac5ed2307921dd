/** The events of a job: server-sent events over fetch, since EventSource cannot send a token. */

/** Takes such a stream apart, however it is cut. */
export class EventParser {
  #rest = '';
  #event = {};

  /**
   * @param {string} text the next piece of the stream
   * @returns {{id: string, event: string, data: string}[]} what is complete
   */
  push(text) {
    const lines = (this.#rest + text).split(/\r\n|\n|\r(?!$)/);
    this.#rest = lines.pop();
    const complete = [];
    for (const line of lines) {
      if (line === '') {
        if (this.#event.data !== undefined) complete.push({ event: 'message', ...this.#event });
        this.#event = {};
        continue;
      }
      const [, name, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (name === 'data' && this.#event.data !== undefined) this.#event.data += `\n${value}`;
      else if (name) this.#event[name] = value;
    }
    return complete;
  }
}

/**
 * Every event of a job from now on, until it has ended or `signal` says so.
 *
 * @param api
 * @param {string} id
 * @param {AbortSignal} signal
 * @yields {{event: 'state' | 'progress', data: object}}
 * @throws {Problem} the stream broke; the caller may begin anew
 */
export async function* eventsOf(api, id, signal) {
  const response = await api.call(`jobs/${id}/events`, { signal, cache: 'no-store' });
  const parser = new EventParser();
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    for (const { event, data } of parser.push(value)) yield { event, data: JSON.parse(data) };
  }
}

/** Previews of the server, fetched one after the other: each takes it a moment to draw. */

export class Pictures {
  #api;
  #last = Promise.resolve();
  #urls = new Map();
  #waiting = new WeakMap();
  #watched = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) if (isIntersecting) this.#load(target);
  });

  constructor(api) {
    this.#api = api;
  }

  /** Show a picture (a path below /api/v1/) in an `img` as soon as that can be seen. */
  show(image, path) {
    this.#waiting.set(image, path);
    this.#watched.observe(image);
  }

  #load(image) {
    this.#watched.unobserve(image);
    const path = this.#waiting.get(image);
    this.#last = this.#last.then(async () => {
      if (!image.isConnected) return;
      try {
        image.src = await this.url(path);
      } catch {
        // Without a picture the row says as much; its run's own view says what is wrong.
      }
    });
  }

  /** The address of a picture within this page. */
  async url(path) {
    if (!this.#urls.has(path)) {
      this.#urls.set(path, URL.createObjectURL(await this.#api.blob(path)));
    }
    return this.#urls.get(path);
  }

  /** Forget those of a job that is gone. */
  forget(id) {
    for (const [path, url] of this.#urls) {
      if (!path.startsWith(`jobs/${id}/`)) continue;
      URL.revokeObjectURL(url);
      this.#urls.delete(path);
    }
  }
}

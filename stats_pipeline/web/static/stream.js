// The event stream, open while somebody watches: one tab by itself (info.js), or all tabs together (shared.js).
// It reports "open", "job" (one has changed), "lost" (it reconnects by itself) and "refused".

const ADDRESS = "/api/admin/background-jobs/stream";
const RETRY_MS = 5_000;

export class Stream {
  #report;
  #source = null;
  #retry;

  constructor(report) {
    this.#report = report;
  }

  get isOpen() {
    return this.#source?.readyState === EventSource.OPEN;
  }

  open() {
    if (this.#source) return;
    const source = new EventSource(ADDRESS);
    this.#source = source;
    source.addEventListener("open", () => this.#report("open"));
    source.addEventListener("job", () => this.#report("job"));
    source.addEventListener("error", () => {
      // The browser reconnects after a broken connection, but not after a refusal.
      const isRefused = source.readyState === EventSource.CLOSED;
      this.#report(isRefused ? "refused" : "lost");
      if (isRefused) this.#retry = setTimeout(() => this.#reopen(), RETRY_MS);
    });
  }

  close() {
    clearTimeout(this.#retry);
    this.#source?.close();
    this.#source = null;
  }

  #reopen() {
    this.close();
    this.open();
  }
}

// Clips: fetched whole with the listener's token, played from memory, and watched for what has been heard.

const BIN_S = 0.1; // what has been heard is kept in pieces of this length
const WATCH_MS = 50;

/** Fetches clips once each, early enough that none ever stops to load. */
export class Clips {
  #token;
  #urls = new Map();

  constructor(token) {
    this.#token = token;
  }

  /** The address in memory of clip `id`. Rejects if it cannot be fetched; the next call tries again. */
  url(id) {
    if (!this.#urls.has(id)) {
      const fetched = this.#fetch(id);
      fetched.catch(() => this.#urls.delete(id));
      this.#urls.set(id, fetched);
    }
    return this.#urls.get(id);
  }

  /** Lets go of all clips but these. */
  keep(ids) {
    for (const [id, fetched] of this.#urls) {
      if (ids.includes(id)) continue;
      this.#urls.delete(id);
      fetched.then(URL.revokeObjectURL, () => {});
    }
  }

  async #fetch(id) {
    const response = await fetch(`api/audio/${id}`, { headers: { Authorization: `Bearer ${this.#token}` } });
    if (!response.ok) throw new Error("the clip was refused");
    return URL.createObjectURL(await response.blob());
  }
}

/** One clip with its button. Fires `change` when something to be shown has changed, `failed` if it cannot be loaded. */
export class Player extends EventTarget {
  listened = 0; // seconds played, repetitions included
  heard = false; // whether every part has been played
  #audio = new Audio();
  #bins;
  #last = { position: 0, at: 0 };
  #timer = 0;

  constructor(clip, clips) {
    super();
    this.id = clip.id;
    this.seconds = clip.seconds;
    this.clips = clips;
    this.#bins = new Uint8Array(Math.max(1, Math.ceil(clip.seconds / BIN_S)));
    this.#audio.preload = "auto";
    this.#audio.addEventListener("ended", () => this.#stop(true));
    this.#audio.addEventListener("pause", () => this.#stop(false));
  }

  get playing() {
    return this.#timer !== 0;
  }

  get position() {
    return this.#audio.currentTime;
  }

  /** Plays on from where it stopped, or from `position` in seconds. */
  async play(position) {
    try {
      if (!this.#audio.src) this.#audio.src = await this.clips.url(this.id);
      if (position !== undefined) this.#audio.currentTime = position;
      else if (this.#audio.ended) this.#audio.currentTime = 0;
      this.#last = { position: this.#audio.currentTime, at: performance.now() };
      await this.#audio.play();
    } catch (error) {
      // A pause in the same moment is no fault.
      if (error.name !== "AbortError") this.dispatchEvent(new Event("failed"));
      return;
    }
    clearInterval(this.#timer);
    this.#timer = setInterval(() => this.#watch(this.#audio.currentTime), WATCH_MS);
    this.dispatchEvent(new Event("change"));
  }

  pause() {
    this.#audio.pause();
  }

  /** Stops for good. */
  release() {
    this.pause();
    clearInterval(this.#timer);
    this.#audio.removeAttribute("src");
  }

  #stop(atEnd) {
    if (!this.playing) return;
    this.#watch(atEnd ? this.seconds : this.#audio.currentTime);
    clearInterval(this.#timer);
    this.#timer = 0;
    this.dispatchEvent(new Event("change"));
  }

  #watch(position) {
    const now = performance.now();
    const { position: before, at } = this.#last;
    // What went by faster than time was skipped, not heard.
    if (position > before && position - before <= ((now - at) / 1000) * 1.1 + 0.3) {
      this.listened += position - before;
      this.#bins.fill(1, Math.floor(before / BIN_S), Math.ceil(position / BIN_S));
    }
    this.#last = { position, at: now };
    this.heard ||= this.#bins.every(Boolean);
    this.dispatchEvent(new Event("change"));
  }
}

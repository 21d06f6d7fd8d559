// Plays a video while it is written, and the finished file in its place.
// The file is a fragmented mp4: the server says where each closed segment ends, and the bytes come from ComfyUI's own
// /view. Only a window around the play position is buffered, because browsers silently drop what exceeds their limit.
import { api } from "../../scripts/api.js";

const AHEAD_S = 90;
const BEHIND_S = 60;
const AHEAD_BYTES = 48e6;
const BEHIND_BYTES = 24e6;
const LOOK_EVERY_MS = 500;
const A_FRAME_OR_TWO_S = 0.15;
const OPENS_WITHIN_MS = 10_000;
const A_TOUCH_MS = 500; // A pause this soon after a click or a key on the video is the user's.

const urlOf = (file, more = {}) => api.apiURL(`/view?${new URLSearchParams({ ...file, ...more })}`);
const viewOf = (file) => `/view?${new URLSearchParams(file)}`;

export class Player {
  constructor() {
    this.element = this.#made();
    this.next = null; // opens the finished file, before it takes the place of `element`
    this.grows = true;
    this.how = null; // "segments", "file", "finished", or "none" where the browser cannot play the codec or file
    this.missing = false; // whether the file is not there
    this.video = null; // the server's last state
    this.heldByUser = false;
    this.touched = -Infinity;
    this.timer = setInterval(() => this.#look(), LOOK_EVERY_MS);
  }

  #made() {
    const element = document.createElement("video");
    Object.assign(element, { controls: true, muted: true, playsInline: true, preload: "auto" });
    for (const kind of ["pointerdown", "keydown"])
      element.addEventListener(kind, () => (this.touched = performance.now()), true);
    element.addEventListener("pause", () => {
      if (element.isConnected && !element.ended && performance.now() - this.touched < A_TOUCH_MS) this.heldByUser = true;
    });
    element.addEventListener("play", () => (this.heldByUser = false));
    element.addEventListener("seeking", () => this.#fill());
    // At the end of what is made so far: a still picture instead of the browser's spinner.
    element.addEventListener("waiting", () => this.#atEnd && element.pause());
    element.addEventListener("ended", () => this.#look());
    element.addEventListener("error", () => this.#failed(element));
    return element;
  }

  get playable() {
    return this.element.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA;
  }

  // Whether there is something to show; a player that waits for more keeps its position.
  get begun() {
    return (this.hasBegun ||= this.playable);
  }

  // The newest state of the video from the server, and whether more will follow.
  show(video, grows) {
    this.video = video;
    this.grows = grows;
    if (video.finished) this.#finish(video.file);
    else if (!this.how && video.segments.length) this.#open();
    this.#fill();
  }

  close() {
    clearInterval(this.timer);
    this.finished = null;
    this.#dropNext();
    this.#leave();
    this.element.remove();
  }

  get #ends() {
    return this.video.segments.map(([, second]) => second);
  }

  get #atEnd() {
    if (this.how !== "segments" || !this.grows) return false;
    return this.#ends.at(-1) - this.element.currentTime < A_FRAME_OR_TWO_S;
  }

  #open() {
    const { codec, segments } = this.video;
    if (window.MediaSource?.isTypeSupported(codec ?? "")) this.#openSegments();
    else if (codec && this.element.canPlayType(codec)) this.#reopen();
    else this.how = "none";
    // Starts at the newest part of what exists already.
    if (segments.length > 2) this.startAt = segments.at(-2)[1];
  }

  #openSegments() {
    this.how = "segments";
    const { codec } = this.video;
    const source = new MediaSource();
    const url = URL.createObjectURL(source);
    this.source = source;
    this.buffer = null;
    source.addEventListener(
      "sourceopen",
      () => {
        URL.revokeObjectURL(url);
        if (source !== this.source) return; // The finished file came before the page had opened this.
        this.buffer = source.addSourceBuffer(codec);
        this.#fill();
      },
      { once: true },
    );
    this.element.src = url;
  }

  // Plays the file as written so far, if the page may not use Media Source Extensions.
  #reopen() {
    const at = this.element.currentTime;
    this.how = "file";
    this.opened = this.video.segments.length;
    this.element.src = urlOf(this.video.file, { opened: this.opened });
    this.startAt = at || this.startAt;
  }

  #finish(file) {
    const src = urlOf(file);
    if (this.finished === src) return;
    this.finished = src;
    this.#dropNext();
    if (this.playable && !this.#isAlone) this.#openBeside(src);
    else this.#openInPlace(src);
  }

  get #isAlone() {
    return [document.fullscreenElement, document.pictureInPictureElement].includes(this.element);
  }

  #openInPlace(src) {
    this.#dropNext();
    this.startAt = this.element.currentTime;
    this.#leave();
    this.how = "finished";
    Object.assign(this.element, { loop: true, src });
  }

  // Opening a file in the element that plays would make it black for a moment.
  #openBeside(src) {
    const { muted, volume, playbackRate } = this.element;
    const next = this.#made();
    this.next = next;
    this.buffer = null; // The bytes of the growing file are no longer there.
    next.addEventListener("loadedmetadata", () => (next.currentTime = this.element.currentTime), { once: true });
    next.addEventListener("seeked", () => this.next === next && this.#exchange(), { once: true });
    // Some browsers load only what is on the page.
    setTimeout(() => this.next === next && this.#openInPlace(src), OPENS_WITHIN_MS);
    Object.assign(next, { loop: true, muted, volume, playbackRate, src });
  }

  #dropNext() {
    const { next } = this;
    this.next = null;
    if (next) leave(next);
  }

  #exchange() {
    const { element: old, next } = this;
    if (this.#isAlone) return this.#openInPlace(this.finished);
    next.hidden = old.hidden;
    if (!old.paused) next.play().catch(() => {});
    old.replaceWith(next);
    this.#leave();
    this.element = next;
    this.next = null;
    this.how = "finished";
  }

  #leave() {
    this.source = this.buffer = null;
    leave(this.element);
  }

  #failed(element) {
    if (!element.getAttribute("src") || ![this.element, this.next].includes(element)) return;
    if (element === this.next) this.#openInPlace(this.finished);
    else if (this.next) return; // It will be replaced.
    else if (this.how === "segments") {
      this.#leave();
      this.#reopen();
    } else this.#giveUp();
  }

  async #giveUp() {
    this.how = "none";
    const answer = await api.fetchApi(viewOf(this.video.file), { method: "HEAD" }).catch(() => null);
    this.missing = answer?.status === 404;
  }

  #look() {
    const { element } = this;
    if (this.startAt && element.readyState >= HTMLMediaElement.HAVE_METADATA) {
      element.currentTime = this.startAt;
      this.startAt = 0;
    }
    if (this.how === "file" && element.ended && this.video.segments.length > this.opened) this.#reopen();
    this.#fill();
    const waits = element.paused && !element.ended && element.isConnected && this.playable && !this.#atEnd;
    if (waits && !this.heldByUser) element.play().catch(() => {});
  }

  // Fetches the missing segments of the window, one at a time.
  async #fill() {
    if (this.how !== "segments" || !this.buffer || this.filling) return;
    this.filling = true;
    const { buffer } = this;
    try {
      if (!buffer.begun) {
        await this.#append(buffer, 0, this.video.init);
        buffer.begun = true;
      }
      for (let next = this.#missing(); next !== null && buffer === this.buffer; next = this.#missing()) {
        await this.#leaveOut(buffer);
        const from = next ? this.video.segments[next - 1][0] : this.video.init;
        await this.#append(buffer, from, this.video.segments[next][0]);
        if (this.source) this.source.duration = Math.max(this.#ends.at(-1), lastOf(buffer));
      }
      this.#end(buffer);
    } catch (error) {
      if (buffer === this.buffer && error.name !== "QuotaExceededError") console.warn("packforcing: video", error);
    } finally {
      this.filling = false;
    }
  }

  // Ends a stopped video, where a player would otherwise wait for more.
  #end(buffer) {
    const last = this.#ends.at(-1) - 0.01;
    const whole = buffer === this.buffer && !this.grows && this.source.readyState === "open" && holds(buffer, last);
    if (whole) this.source.endOfStream();
  }

  async #append(buffer, from, to) {
    const headers = { Range: `bytes=${from}-${to - 1}` };
    const answer = await api.fetchApi(viewOf(this.video.file), { headers, cache: "no-store" });
    if (!answer.ok) throw new Error(`${answer.status} for bytes ${from} to ${to}`);
    const bytes = await answer.arrayBuffer();
    if (buffer !== this.buffer) return; // The finished video has taken its place.
    buffer.appendBuffer(answer.status === 206 ? bytes : bytes.slice(from, to));
    await updated(buffer);
  }

  // The number of the first segment in the window that is not buffered.
  #missing() {
    const ends = this.#ends;
    const now = this.startAt || this.element.currentTime;
    let bytes = 0;
    for (let number = 0; number < ends.length; number++) {
      const start = number ? ends[number - 1] : 0;
      if (ends[number] <= now) continue;
      bytes += this.video.segments[number][0] - (number ? this.video.segments[number - 1][0] : 0);
      if (start > now + AHEAD_S || (bytes > AHEAD_BYTES && start > now + 1)) return null;
      if (!holds(this.buffer, (start + ends[number]) / 2)) return number;
    }
    return null;
  }

  // Removes whole segments only: without its first frame, the rest of a segment cannot be shown.
  async #leaveOut(buffer) {
    const now = this.element.currentTime;
    const { segments } = this.video;
    const here = segments.find(([, end]) => end > now)?.[0] ?? 0;
    const kept = segments.findIndex(([byte, end]) => byte > here - BEHIND_BYTES && end > now - BEHIND_S);
    const first = kept > 0 ? segments[kept - 1][1] : 0;
    const last = now + AHEAD_S + 10;
    for (const [start, end] of [
      [0, first],
      [last, Infinity],
    ]) {
      if (end <= 0 || !holdsAny(buffer, start, end)) continue;
      buffer.remove(start, end);
      await updated(buffer);
    }
  }
}

function leave(element) {
  element.removeAttribute("src");
  element.load();
}

const updated = (buffer) =>
  new Promise((done, failed) => {
    if (!buffer.updating) return done();
    const heard = new AbortController(); // Of the two, the listener that is not called has to go as well.
    const hear = (kind, then) => buffer.addEventListener(kind, then, { signal: heard.signal });
    hear("error", () => failed(new Error("the video could not be decoded")));
    hear("updateend", () => {
      heard.abort();
      done();
    });
  });

const spans = ({ buffered }) => Array.from({ length: buffered.length }, (_, i) => [buffered.start(i), buffered.end(i)]);
const holds = (buffer, second) => spans(buffer).some(([start, end]) => start <= second && second < end);
const holdsAny = (buffer, from, to) => spans(buffer).some(([start, end]) => start < to && end > from);
const lastOf = (buffer) => Math.max(0, ...spans(buffer).map(([, end]) => end));

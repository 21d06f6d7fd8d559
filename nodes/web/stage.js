// The pictures on a node: of each video its player, the newest frame, or what it waits for; side by side if there are several.
import { inWords } from "./words.js";

// Options of a DOM widget. In the side panel it would be a parameter, and its element would leave the node.
export const SHOWN_ON_NODE = { serialize: false, hideOnZoom: false, hideInPanel: true, getValue: () => "", setValue() {} };

export const AMBER = "color-mix(in srgb, var(--input-text, #ddd) 35%, #e8930c)"; // Of warnings and errors.

export const STAGE_STYLE = `
.packforcing-monitor > .stage { flex: 1 1 auto; min-height: 0; border-radius: 4px; overflow: hidden; display: flex; gap: 4px; }
.packforcing-monitor .cell { flex: 1 1 0; min-width: 0; position: relative; }
.packforcing-monitor video, .packforcing-monitor img { width: 100%; height: 100%; object-fit: contain; display: block; }
.packforcing-monitor .waiting { position: absolute; inset: 0; display: flex; align-items: center; justify-content: center;
  padding: 8px; text-align: center; font: 12px/16px Inter, sans-serif; color: var(--descrip-text, #999);
  background: var(--comfy-input-bg, #222); }
.packforcing-monitor .title { position: absolute; left: 4px; top: 2px; padding: 0 4px; border-radius: 3px;
  font: 12px/16px Inter, sans-serif; color: #fff; background: #0009; pointer-events: none; }`;

class Cell {
  constructor() {
    this.element = document.createElement("div");
    this.element.className = "cell";
    this.element.innerHTML = '<img><div class="waiting"></div><div class="title"></div>';
    [this.picture, this.waiting, this.title] = this.element.children;
  }

  // The video if there is one that plays, else the newest frame.
  show({ title, player, frame, waits }) {
    const plays = Boolean(player?.begun) && player.how !== "none";
    const there = this.element.querySelector("video");
    if (player?.element !== there) {
      there?.remove();
      if (player) this.element.prepend(player.element);
    }
    if (player) player.element.hidden = !plays;
    if (frame && this.picture.src !== frame) this.picture.src = frame;
    this.picture.hidden = plays || !frame;
    this.waiting.hidden = plays || Boolean(frame) || !waits;
    this.waiting.textContent = waits ? inWords(waits) : "";
    this.title.hidden = !title;
    this.title.textContent = title ?? "";
  }
}

export class Stage {
  constructor(element) {
    this.element = element;
    this.cells = [];
  }

  // `videos`: [{ title, player, frame, waits: the key of what an empty cell says }, ...]
  show(videos) {
    if (this.cells.length !== videos.length) {
      this.cells = videos.map(() => new Cell());
      this.element.replaceChildren(...this.cells.map((cell) => cell.element));
    }
    videos.forEach((video, number) => this.cells[number].show(video));
  }

  clear() {
    this.cells = [];
    this.element.replaceChildren();
  }
}

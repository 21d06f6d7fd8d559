// Shows a node's messages and its video on the node, during and after a run.
// It is one DOM widget. It does not use the front end's own previews and progress texts, which change by version.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isHere, nodeOf, ofOneTab, onTold, settingsOf, settingsOfJob } from "./graph.js";
import { MAKES_VIDEO, STACKS_VIDEOS, WARNING, foldedWarnings, withStacks } from "./folded.js";
import { UNCHANGED, followFailures, refusals } from "./failures.js";
import { Player } from "./player.js";
import { AMBER, SHOWN_ON_NODE, STAGE_STYLE, Stage } from "./stage.js";
import { combined, follow, hostOf, openGraph } from "./subgraph.js";
import { inLanguage, inWords, loadWords } from "./words.js";

const WIDGET = "packforcing_monitor";
const PACK = "PackForcing"; // What the types of this pack's nodes begin with.
const LOOK_EVERY_MS = 500;
const DEMO = "PackForcingDemoModels";
const MARGIN = 10; // Of a DOM widget, on every side.
const LINE = 16;
const MOST_LINES = 9; // More lines scroll,
const MOST_LINES_WITH_ROOM = 20; // if the node has its minimum size,
const MOST_LINES_BY_TEXT = 4; // and on a node that has a text box. Where nothing stands below, there may be more.
const NEXT_TITLE = 60; // What the title of a node below takes, and what is left free above it.
const TALLEST = 1; // Height over width of the place for videos: portraits would cover the nodes below.
const LARGEST_TEXT_BOX = 100; // What a text box keeps beyond its minimum height: a saved graph has the grown height.
const MOST_EVENTS = 100;
const NOT_PLAYED = "This browser cannot play this codec. The file itself is fine.";
const MISSING = "The file is no longer there. Press Run to write it again.";
const STYLE = `
${STAGE_STYLE}
.packforcing-monitor { display: flex; flex-direction: column; gap: 4px; overflow: hidden; }
.packforcing-monitor > .bar { flex: none; height: 3px; border-radius: 2px; background: var(--comfy-input-bg, #333); }
.packforcing-monitor > .bar > div { height: 100%; border-radius: 2px; background: #5aa867; }
.packforcing-monitor > .said { flex: 0 1 auto; min-height: ${LINE}px; overflow-y: auto; scrollbar-width: thin;
  scrollbar-color: #888 transparent; font: 12px/${LINE}px Inter, sans-serif;
  color: var(--input-text, #ddd); white-space: pre-wrap; overflow-wrap: anywhere; user-select: text; }
.packforcing-monitor > .said.cut { mask-image: linear-gradient(#000 calc(100% - ${2 * LINE}px), #0003); }
.packforcing-monitor > .said.past { opacity: 0.6; }
.packforcing-monitor .warning { color: ${AMBER}; }
.packforcing-monitor [hidden] { display: none; }`;

const events = new Map(); // node and job -> the newest event
const players = new Map(); // node and job -> Player; kept when another tab is opened, which removes the node
const frames = new Map(); // node and job -> the newest frame
const moves = new Map(); // node and job -> the node's next id, see `moved`
const views = new Map(); // node -> View
const watched = new WeakSet(); // nodes whose removal is noticed
const refusing = new WeakSet(); // subgraph nodes that take no further widget: those of front ends before 1.58
const atFirst = new Map(); // node -> its event before it has run
const pen = document.createElement("canvas").getContext("2d");

const jobOf = ({ node, prompt }) => `${prompt} ${node}`;
const playerOf = (event) => event && players.get(jobOf(event));

function linesOf(text, width) {
  pen.font = "12px Inter, sans-serif";
  let lines = 0;
  for (const paragraph of text.split("\n")) {
    let line = "";
    lines += 1;
    for (const word of paragraph.split(" ")) {
      const longer = line ? `${line} ${word}` : word;
      const over = pen.measureText(longer).width / width;
      if (over <= 1) line = longer;
      else {
        lines += (line ? 1 : 0) + Math.floor(pen.measureText(word).width / width);
        line = word;
      }
    }
  }
  return lines;
}

// The height that a text box has beyond its minimum. The room for a message would be taken from it.
function roomOfText(node) {
  const hasText = node.widgets?.some((widget) => widget.type === "customtext");
  if (!hasText) return 0;
  return Math.min(LARGEST_TEXT_BOX, Math.max(0, node.size[1] - node.computeSize()[1]));
}

// How far a node can grow before it covers the next one below it.
function freeBelow(node) {
  const [left, top] = node.pos;
  const bottom = top + node.size[1];
  const beside = ({ pos, size }) => pos[0] < left + node.size[0] && left < pos[0] + size[0];
  const tops = (node.graph?.nodes ?? []).filter((other) => other !== node && beside(other)).map(({ pos }) => pos[1]);
  return Math.min(...tops.filter((other) => other >= bottom)) - bottom - NEXT_TITLE;
}

// A line of a message, as `View.lines` has it, after a line break if it is not the first.
function asElements({ text, warns }, number) {
  const line = document.createElement("span");
  line.className = warns ? "warning" : "";
  line.textContent = text;
  return number ? ["\n", line] : [line];
}

class View {
  constructor(node) {
    this.node = node;
    this.event = null;
    this.element = document.createElement("div");
    this.element.className = "packforcing-monitor";
    this.element.innerHTML = '<div class="stage" hidden></div><div class="bar" hidden><div></div></div><div class="said"></div>';
    const [stage, bar, said] = this.element.children;
    Object.assign(this, { stage: new Stage(stage), bar, said });
    const getMinHeight = () => this.height;
    // A text box on the node gets the room that is left. A video grows with its node.
    const getMaxHeight = () => (this.event?.video ? Infinity : this.height);
    const options = { ...SHOWN_ON_NODE, getMinHeight, getMaxHeight };
    this.said.addEventListener("scroll", () => this.markCut());
    this.widget = node.addDOMWidget(WIDGET, WIDGET, this.element, options);
    this.widget.serialize = false; // Not saved: a workflow stores widget values by position.
  }

  get height() {
    if (!this.event) return 0;
    const width = this.node.size[0] - 2 * MARGIN;
    const lines = Math.min(this.mostLines, linesOf(this.text, width));
    const stage = this.event.video ? Math.ceil(width * this.aspect) + 11 : 0;
    return stage + lines * LINE + 2 * MARGIN + 2;
  }

  // A node that the user makes taller gives the height to its message.
  get mostLines() {
    const taller = this.fitted ? Math.max(0, this.node.size[1] - this.fitted) : 0;
    const least = this.room ? MOST_LINES_BY_TEXT : MOST_LINES;
    const fit = this.event.video ? 0 : Math.min(MOST_LINES_WITH_ROOM, Math.floor((this.free - 2 * MARGIN) / LINE));
    return Math.max(least, fit) + Math.floor(taller / LINE);
  }

  // Height over width of the videos side by side.
  get aspect() {
    const sizes = this.parts.map(({ event }) => {
      const { videoWidth, videoHeight } = playerOf(event)?.element ?? {};
      const { width, height } = event?.video ?? this.event.video;
      return videoWidth ? videoWidth / videoHeight : width / height;
    });
    return Math.min(TALLEST, 1 / sizes.reduce((sum, size) => sum + size));
  }

  // The lines, and whether each one warns.
  get lines() {
    const { text: own, video, failure, refusal } = this.event;
    const players = video ? this.parts.map(({ event }) => playerOf(event)) : [];
    const cannot = players.find((player) => player?.how === "none");
    const notPlayed = cannot?.missing ? MISSING : NOT_PLAYED;
    const isError = own.startsWith("Error: ");
    return [
      ...(refusal ? refusal.split("\n").map((text) => ({ text, warns: true })) : []),
      ...this.warnings.map((text) => ({ text, warns: true })),
      ...(failure ? [{ text: inLanguage(failure), warns: true }] : []),
      ...(this.past ? [{ text: inWords("{before_change}"), warns: false }] : []),
      ...(own ? own.split("\n") : []).map((line) => ({ text: inLanguage(line), warns: isError || WARNING.test(line) })),
      ...(cannot ? [{ text: inLanguage(notPlayed), warns: true }] : []),
    ];
  }

  get text() {
    return this.lines.map(({ text }) => text).join("\n");
  }

  // Of a stack several videos, else the event's own.
  get parts() {
    return this.event.parts ?? [{ event: this.event }];
  }

  // `warnings`: lines of folded nodes, shown above the event's text. `known`: what `settingsOf` has read so far.
  show(event, warnings, known) {
    if (!this.event) {
      this.room = roomOfText(this.node);
      this.before = this.node.size[1];
      this.free = freeBelow(this.node);
    }
    const settings = settingsOf(event.node, known);
    event.settings ??= settingsOfJob(event) ?? settings;
    const past = Boolean(event.prompt) && settings !== null && event.settings !== settings; // No job: of no run.
    event.past = past;
    Object.assign(this, { event, warnings, past });
    if (event.video) this.showPictures();
    const state = `${event.serial} ${this.text} ${event.video ? this.aspect : 0}`;
    if (state === this.state) return;
    this.state = state;
    this.said.replaceChildren(...this.lines.flatMap(asElements));
    this.said.classList.toggle("past", this.past);
    this.said.style.maxHeight = `${(event.video ? MOST_LINES : MOST_LINES_WITH_ROOM) * LINE}px`;
    this.stage.element.hidden = !event.video;
    if (event.video) this.stage.element.style.aspectRatio = `1 / ${this.aspect}`;
    this.bar.hidden = !event.video || event.state === "done";
    this.bar.firstChild.style.width = `${100 * (event.share ?? 0)}%`;
    this.fit();
  }

  showPictures() {
    const videos = this.parts.map(({ title, event, elsewhere }) => {
      if (elsewhere) return { title, waits: "{elsewhere}" };
      const waits = event ? event.state === "running" && "{first_picture}" : "{not_begun}";
      return { title, player: playerOf(event), frame: event && frames.get(jobOf(event)), waits };
    });
    this.stage.show(videos);
  }

  clear() {
    if (!this.event) return;
    this.event = this.state = null;
    this.said.textContent = "";
    this.stage.clear();
    this.stage.element.hidden = this.bar.hidden = true;
    if (this.room) this.leave();
    this.node.setDirtyCanvas?.(true, true);
  }

  // An empty widget would keep a share of the text box's room in Nodes 2.0.
  leave() {
    const [width, height] = this.node.size;
    views.delete(this.node);
    this.node.removeWidget?.(this.widget);
    if (height === this.fitted) this.node.setSize([width, this.before]);
  }

  fit() {
    const [width, height] = this.node.size;
    const shape = this.event.video ? this.aspect : 0;
    const reshaped = shape !== this.shape && height === this.fitted; // For another number of lines it would jump.
    this.fitted = 0;
    this.shape = shape;
    const least = this.node.computeSize()[1] + this.room;
    const needed = reshaped ? least : Math.max(this.before, least);
    if (height < needed || reshaped) this.node.setSize([width, needed]);
    this.fitted = needed;
    this.node.setDirtyCanvas?.(true, true);
  }

  // Where more text follows below, the last lines fade.
  markCut() {
    const { scrollTop, clientHeight, scrollHeight } = this.said;
    this.said.classList.toggle("cut", scrollTop + clientHeight < scrollHeight - 2);
  }
}

function watch(node) {
  if (watched.has(node)) return;
  watched.add(node);
  const removed = node.onRemoved;
  node.onRemoved = function () {
    views.delete(node);
    atFirst.delete(node);
    return removed?.apply(this, arguments);
  };
}

function viewOf(node) {
  if (!views.has(node) && node.addDOMWidget && !refusing.has(node)) {
    const view = new View(node);
    if (node.widgets?.includes(view.widget)) views.set(node, view);
    else {
      refusing.add(node);
      view.widget.onRemove?.();
    }
    watch(node);
  }
  return views.get(node);
}

function heard(sent) {
  const event = placed(sent);
  const job = jobOf(event);
  for (const [other, old] of events) {
    const replaced = old.node === event.node && ofOneTab(old.prompt, event.prompt);
    if (other !== job && replaced && old.serial < event.serial) forget(other);
  }
  events.set(job, event);
  if (event.video) {
    if (!players.has(job)) players.set(job, new Player());
    players.get(job).show(event.video, event.state === "running");
  }
  for (const old of [...events.keys()].slice(0, -MOST_EVENTS)) forget(old);
  settle();
}

function forget(job) {
  players.get(job)?.close();
  for (const known of [players, frames, events]) known.delete(job);
}

// A node that was put into a subgraph keeps what it and its job said. The server knows its old id.
function moved(event, node) {
  const [before, after] = [jobOf(event), jobOf({ ...event, node })];
  if (events.has(after)) return;
  moves.set(before, node).delete(after);
  for (const known of [players, frames])
    if (known.has(before)) known.set(after, known.get(before));
  for (const known of [players, frames, events]) known.delete(before);
  // The settings that an event was sent with name ids; that they were changed since is kept.
  events.set(after, { ...event, node, settings: event.past ? "changed" : undefined });
}

// The id of an event's node now.
function placed(event) {
  const node = moves.get(jobOf(event));
  return node ? placed({ ...event, node }) : event;
}

// Shows the newest message of each node, or of what is in it if it is a subgraph.
function settle() {
  follow([...events.values()].filter(isHere), moved);
  const newest = new Map(); // node -> event
  const inside = new Map(); // node of a subgraph -> id -> event
  const placeOf = (id) => {
    const host = hostOf(id);
    if (host && !inside.has(host)) inside.set(host, new Map());
    return host ? [inside.get(host), id] : [newest, nodeOf(id)];
  };
  for (const event of events.values()) {
    const [known, key] = isHere(event) ? placeOf(event.node) : [];
    if (key && !(known.get(key)?.serial > event.serial)) known.set(key, event);
  }
  for (const [id, refusal] of refusals()) {
    const [known, key] = placeOf(id);
    const nothing = { node: id, prompt: "", serial: 0, state: "done", text: "" };
    if (key) known.set(key, { ...(known.get(key) ?? nothing), refusal });
  }
  for (const [node, event] of atFirst) if (node.graph && !newest.has(node)) newest.set(node, event);
  const warnings = foldedWarnings(newest);
  const all = [...withStacks(newest)].map(([node, event]) => ({ node, event, warnings: warnings.get(node) ?? [] }));
  for (const [node, known] of inside) all.push({ node, ...combined(known.values()) });
  showAll(all);
}

function showAll(all) {
  const shown = new Set();
  const known = new Map();
  for (const { node, event, warnings } of all) {
    // An empty text removes the message.
    const says = event.video || event.text || event.refusal || (node.subgraph && warnings.length);
    const ours = node.subgraph || node.comfyClass?.startsWith(PACK);
    const view = says && (!event.known || ours) && viewOf(node);
    if (!view) continue;
    view.show(event, warnings, known);
    view.markCut();
    shown.add(view);
  }
  for (const [node, view] of views) if (node.graph === openGraph() && !shown.has(view)) view.clear();
}

function showFrame({ image, ...sent }) {
  const job = jobOf(placed(sent));
  if (events.get(job)?.state !== "running") return;
  frames.set(job, image);
  const shows = ({ event }) => event && jobOf(event) === job;
  for (const view of views.values()) if (view.event?.video && view.parts.some(shows)) view.showPictures();
}

// For an event of this page's own: newer than all that were sent.
function nextSerial() {
  return 1 + Math.max(0, ...[...events.values()].map((other) => other.serial));
}

// A run with only cached nodes sends no messages, only the outputs of its last nodes.
function showKnown({ node, display_node, output, prompt_id: prompt }) {
  const event = { node: String(display_node ?? node), prompt, workflow: null, state: "done", known: true };
  const [file] = output?.images ?? [];
  if (!file || ![output.file, output.text].every(Array.isArray) || events.has(jobOf(event))) return;
  const video = { width: 16, height: 9, finished: true, file, segments: [] }; // Until the file's size is known.
  const text = [...output.file, UNCHANGED, ...output.text].join("\n");
  heard({ ...event, serial: nextSerial(), text, video });
}

// The demo's node lists the words of its prompts before it has run: in a second tab ComfyUI does not run it again.
async function introduce(node) {
  const answer = await api.fetchApi("/packforcing/demo").catch(() => null);
  const text = answer?.ok && (await answer.text());
  if (!text || !node.graph) return;
  watch(node);
  atFirst.set(node, { node: String(node.id), prompt: "", serial: 0, text });
}

onTold("packforcing.monitor", heard);
api.addEventListener("packforcing.frame", ({ detail }) => showFrame(detail));
api.addEventListener("executed", ({ detail }) => showKnown(detail));
followFailures({ events, heard, nextSerial });

app.registerExtension({
  name: "packforcing.monitor",
  async setup() {
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
    setInterval(settle, LOOK_EVERY_MS);
    await loadWords();
  },
  nodeCreated(node) {
    if (node.comfyClass === DEMO) introduce(node);
    if (![MAKES_VIDEO, STACKS_VIDEOS].includes(node.comfyClass) || !node.addDOMWidget) return;
    viewOf(node);
    // The front end would show its own preview of the same file beside it.
    node.hideOutputImages = true;
    node.onDrawBackground = () => {};
  },
});

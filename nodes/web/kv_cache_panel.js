// Draws the window on the past on the KV Cache node: as planned from the widgets, and as it is while a render runs.
// The server plans and draws; this file collects widget values, puts words in the user's language, and shows.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isHere, lastTold, nodeOf, onTold } from "./graph.js";

const CACHE = "PackForcingKVCache";
const PANEL = "packforcing_window";
const BLOCK = "packforcing.block";
const LOOK_EVERY_MS = 500;
const MOST_HOPS = 32;
const ASPECT = 128 / 300;
const MARGIN = 10; // Around a DOM widget, on every side.

const panels = new Map(); // node -> { element, asked: the values that the picture is of, blocks: how many were shown }
let words = {};

async function loadWords() {
  const language = app.ui?.settings?.getSettingValue?.("Comfy.Locale") ?? "en";
  const all = await (await api.fetchApi("/i18n")).json();
  words = { ...all.en?.packforcing, ...all[language]?.packforcing };
}

const inWords = (text) => text.replace(/\{(\w+)\}/g, (_, key) => words[key] ?? key.replaceAll("_", " "));

// What a widget is fed by a node that holds a value (stock Int, Float) counts, not what stands in its greyed field.
function fedValue(node, widget) {
  const slot = (node.inputs ?? []).findIndex((input) => input.widget?.name === widget.name && input.link != null);
  return slot < 0 ? undefined : node.getInputNode(slot)?.widgets?.find((other) => other.name === "value")?.value;
}

function valuesOf(node) {
  if (!node) return null;
  // What the front end and this pack show on a node ("$$...", the panel) is none of its values, and comes and goes.
  const widgets = (node.widgets ?? []).filter(({ name, serialize }) => serialize !== false && !name.startsWith("$$"));
  return Object.fromEntries(widgets.map((widget) => [widget.name, fedValue(node, widget) ?? widget.value]));
}

const named = (node, ...names) => (node.widgets ?? []).some((widget) => names.includes(widget.name));

// The first node down the links that says how long the video is; up them, the first that says which file.
function follow(node, next, isIt) {
  const seen = new Set();
  const waiting = next(node);
  while (waiting.length && seen.size < MOST_HOPS) {
    const candidate = waiting.shift();
    if (!candidate || seen.has(candidate)) continue;
    if (isIt(candidate)) return candidate;
    seen.add(candidate);
    waiting.push(...next(candidate));
  }
  return null;
}

const below = (node) => (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes(slot) ?? []);
const above = (node) =>
  (node.inputs ?? []).flatMap((input, slot) => (["MODEL", "*"].includes(input.type) ? [node.getInputNode(slot)] : []));

function graphAround(node) {
  const sampler = follow(node, below, (other) => named(other, "seconds") && named(other, "timesteps"));
  const loader = sampler && follow(sampler, above, (other) => named(other, "checkpoint", "unet_name"));
  return JSON.stringify({ cache: valuesOf(node), sampler: valuesOf(sampler), model: valuesOf(loader) });
}

async function look(node, panel) {
  if (!named(node, "policy")) return; // A front end that does not know menus with parts.
  const graph = graphAround(node);
  if (graph === panel.asked) return;
  const told = panel.asked === null && lastTold(BLOCK, node); // The page was loaded again while or after it ran.
  panel.asked = graph;
  const blocks = panel.blocks;
  const answer = await api.fetchApi("/packforcing/window", { method: "POST", body: graph });
  const window = answer.ok ? await answer.json() : { problem: await answer.text() };
  if (graph !== panel.asked || blocks !== panel.blocks) return; // What has been drawn meanwhile is newer.
  if (window.svg) panel.element.innerHTML = inWords(window.svg);
  else panel.element.textContent = window.problem;
  if (told) showBlock(told);
}

function lookAtAll() {
  for (const [node, panel] of panels) {
    if (node.graph) look(node, panel).catch((error) => (panel.element.textContent = String(error)));
  }
}

function showBlock(event) {
  const panel = isHere(event) && panels.get(nodeOf(event.node));
  if (!panel) return;
  panel.blocks += 1;
  panel.element.innerHTML = inWords(event.svg);
}

function addPanel(node) {
  const element = document.createElement("div");
  element.className = "packforcing-window";
  element.style.cssText = "overflow:hidden;font-size:11px;color:var(--input-text,#ddd);white-space:pre-wrap";
  const height = () => Math.ceil((node.size[0] - 2 * MARGIN) * ASPECT) + 2 * MARGIN + 2;
  const options = { serialize: false, hideOnZoom: false, getMinHeight: height, getValue: () => "", setValue() {} };
  const widget = node.addDOMWidget(PANEL, PANEL, element, options);
  widget.serialize = false; // Nothing of it is saved: widget values of a workflow go by position.
  panels.set(node, { element, asked: null, blocks: 0 });
  const removed = node.onRemoved;
  node.onRemoved = function () {
    panels.delete(node);
    return removed?.apply(this, arguments);
  };
}

onTold(BLOCK, showBlock);

app.registerExtension({
  name: "packforcing.kv_cache_panel",
  async setup() {
    await loadWords().catch(() => {}); // Without them the words are English.
    setInterval(lookAtAll, LOOK_EVERY_MS);
  },
  nodeCreated(node) {
    if (node.comfyClass === CACHE && node.addDOMWidget) addPanel(node);
  },
});

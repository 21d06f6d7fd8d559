// The drawing on the KV Cache node: planned from the widgets, and updated while a render runs.
// The server plans and draws. This file collects widget values, and shows the drawing in the page's language.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { isHere, lastTold, nodeOf, onTold } from "./graph.js";
import { AMBER, SHOWN_ON_NODE } from "./stage.js";
import { fedValue, nodesAfter, nodesBeforeInput } from "./subgraph.js";
import { inWords, loadWords } from "./words.js";

const CACHE = "PackForcingKVCache";
const PANEL = "packforcing_window";
const BLOCK = "packforcing.block";
const LOOK_EVERY_MS = 500;
const MOST_HOPS = 32;
const ASPECT = 128 / 300;
const TEXT = "var(--input-text, #ddd)";
const MARGIN = 10; // Around a DOM widget, on every side.

const panels = new Map(); // node -> { element, asked: the values of the drawing, blocks: how many were shown }

function valuesOf(node) {
  if (!node) return null;
  // Displays of the front end and of this pack ("$$...", the panel) are not values; skip them.
  const widgets = (node.widgets ?? []).filter(({ name, serialize }) => serialize !== false && !name.startsWith("$$"));
  return Object.fromEntries(widgets.map((widget) => [widget.name, fedValue(node, widget) ?? widget.value]));
}

const named = (node, ...names) => (node.widgets ?? []).some((widget) => names.includes(widget.name));

// Downstream, the first node with the video's length; upstream, the first one with a model file.
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

const above = (node) =>
  (node.inputs ?? []).flatMap((input) => (["MODEL", "*"].includes(input.type) ? nodesBeforeInput(node, input) : []));

function graphAround(node) {
  const sampler = follow(node, nodesAfter, (other) => named(other, "seconds") && named(other, "timesteps"));
  const loader = sampler && follow(sampler, above, (other) => named(other, "checkpoint", "unet_name"));
  return JSON.stringify({ cache: valuesOf(node), sampler: valuesOf(sampler), model: valuesOf(loader) });
}

async function look(node, panel) {
  if (!named(node, "policy")) return; // An old front end without dynamic menus.
  const graph = graphAround(node);
  if (graph === panel.asked) return;
  const told = panel.asked === null && lastTold(BLOCK, node); // The page was reloaded during or after a run.
  panel.asked = graph;
  const blocks = panel.blocks;
  const answer = await api.fetchApi("/packforcing/window", { method: "POST", body: graph });
  const window = answer.ok ? await answer.json() : { problem: await answer.text() };
  if (graph !== panel.asked || blocks !== panel.blocks) return; // A newer drawing was made meanwhile.
  panel.element.style.color = window.svg ? TEXT : AMBER;
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
  panel.element.style.color = TEXT;
  panel.element.innerHTML = inWords(event.svg);
}

function addPanel(node) {
  const element = document.createElement("div");
  element.className = "packforcing-window";
  element.style.cssText = `overflow:hidden;font-size:11px;color:${TEXT};white-space:pre-wrap`;
  const height = () => Math.ceil((node.size[0] - 2 * MARGIN) * ASPECT) + 2 * MARGIN + 2;
  const options = { ...SHOWN_ON_NODE, getMinHeight: height };
  const widget = node.addDOMWidget(PANEL, PANEL, element, options);
  widget.serialize = false; // Not saved: a workflow stores widget values by position.
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
    await loadWords();
    setInterval(lookAtAll, LOOK_EVERY_MS);
  },
  nodeCreated(node) {
    if (node.comfyClass === CACHE && node.addDOMWidget) addPanel(node);
  },
});

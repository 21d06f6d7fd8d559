// Shared by the other files here: finds the node, graph and browser tab that an event of this pack refers to.
// An event names its node, its graph's id and its job. Two tabs of one template have the same ids, so the tab that
// was open when a job was queued is remembered by the job's id.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const JOBS = "packforcing.jobs";
const MOST_JOBS = 50;
const MOST_EVENTS = 200;

// id of a job -> what was there when it was queued: the open workflow, or its path after a reload, and `settingsOf` by node
const jobs = new Map();
const listeners = new Map(); // kind of event -> functions
const told = new Map(); // kind, job and node -> the newest event

let toldAll;
export const allTold = new Promise((done) => (toldAll = done)); // When what was told before a reload is known.

export const openTab = () => app.extensionManager?.workflow?.activeWorkflow ?? null;
const tabOf = (prompt) => jobs.get(prompt)?.tab;
const pathOf = (tab) => (typeof tab === "string" ? tab : tab?.path);

export const rootGraph = () => app.rootGraph ?? app.graph;

// An id such as "5:3" is node 3 in the subgraph of node 5.
export function nodeOf(id) {
  let graph = rootGraph();
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

// A graph that was read from API form has no id of its own until it is loaded again.
const isGiven = (id) => Boolean(id) && /[1-9a-f]/.test(id);

// Whether an event refers to the graph that is open.
export function isHere({ workflow, prompt }) {
  const graph = rootGraph()?.id;
  if (isGiven(workflow) && isGiven(graph) && workflow !== graph) return false;
  const tab = tabOf(prompt);
  const open = openTab();
  return !tab || !open || (typeof tab === "string" ? tab === open.path : tab === open);
}

// Whether two jobs were queued from the same tab, as far as is known.
export function ofOneTab(one, other) {
  const [first, second] = [one, other].map(tabOf).map(pathOf);
  return Boolean(first) && first === second;
}

// Calls `heard(event)` for each event of a kind, and for the last ones if the page was reloaded.
export function onTold(kind, heard) {
  if (!listeners.has(kind)) {
    listeners.set(kind, []);
    api.addEventListener(kind, ({ detail }) => tellAll(kind, detail));
  }
  listeners.get(kind).push(heard);
}

function tellAll(kind, event) {
  const key = `${kind} ${event.prompt} ${event.node}`;
  if (told.get(key)?.serial > event.serial) return;
  told.set(key, event);
  if (told.size > MOST_EVENTS) told.delete(told.keys().next().value);
  for (const heard of listeners.get(kind) ?? []) heard(event);
}

// The newest event of a kind for a node of the open graph, or undefined.
export function lastTold(kind, node) {
  const own = [...told].filter(([key, event]) => key.startsWith(`${kind} `) && isHere(event) && nodeOf(event.node) === node);
  return own.map(([, event]) => event).sort((one, other) => other.serial - one.serial)[0];
}

// "control after generate" has this choice; its name depends on the front end's version.
const isControl = ({ options }) => Array.isArray(options?.values) && options.values.includes("randomize");
const COUNTS_ON = /seed|^value$/; // What a control that is not "fixed" changes when a job is queued.

// Whether a widget is an input by the node's definition, and not one in which a node shows its result.
function isInput(node, name) {
  const { required, optional } = node.constructor?.nodeData?.input ?? {};
  const [first] = name.split("."); // "policy.sink_frames" appears by the choice of "policy".
  return !(required || optional) || first in { ...required, ...optional };
}

// The values of a node's widgets, without those that change by themselves.
function valuesOf(node) {
  const widgets = (node.widgets ?? []).filter((widget) => widget?.name && widget.serialize !== false);
  const counts = widgets.some((widget) => isControl(widget) && widget.value !== "fixed");
  return widgets
    .filter((widget) => !isControl(widget) && !(counts && COUNTS_ON.test(widget.name)) && isInput(node, widget.name))
    .map(({ value }) => value)
    .filter((value) => ["string", "number", "boolean"].includes(typeof value));
}

export const nodesBefore = (node) => (node.inputs ?? []).map((_, slot) => node.getInputNode?.(slot)).filter(Boolean);

// A number that changes with the settings of a node, and of all nodes before it, around it and in it; null if they
// cannot be read: the nodes may be of any pack. `known`: node -> hash, to read each node once.
export function settingsOf(id, known = new Map()) {
  const parts = String(id).split(":");
  try {
    const nodes = new Set(parts.map((_, depth) => nodeOf(parts.slice(0, depth + 1).join(":"))).filter(Boolean));
    for (const node of nodes) {
      for (const other of [...nodesBefore(node), ...(node.subgraph?.nodes ?? [])]) nodes.add(other); // The set grows.
      if (!known.has(node)) known.set(node, hashOf(JSON.stringify([node.id, node.mode, valuesOf(node)])));
    }
    return hashOf([...nodes].map((node) => known.get(node)).join());
  } catch {
    return null;
  }
}

function hashOf(text) {
  let hash = 0;
  for (let at = 0; at < text.length; at++) hash = (Math.imul(hash, 31) + text.charCodeAt(at)) | 0;
  return hash;
}

// The same when a job was queued; undefined if it was queued elsewhere.
export const settingsOfJob = ({ prompt, node }) => jobs.get(prompt)?.settings[node];

export const idsIn = (graph, before = "") =>
  (graph?.nodes ?? []).flatMap((node) => [`${before}${node.id}`, ...idsIn(node.subgraph, `${before}${node.id}:`)]);

function saveJobs() {
  for (const old of [...jobs.keys()].slice(0, -MOST_JOBS)) jobs.delete(old);
  const saved = [...jobs].map(([prompt, job]) => [prompt, { ...job, tab: pathOf(job.tab) }]);
  remember(JOBS, saved);
}

// Keeps a value for a reload.
export function remember(key, value) {
  try {
    sessionStorage.setItem(key, JSON.stringify(value));
  } catch (error) {
    console.warn(`packforcing: ${key} is forgotten by a reload`, error); // The storage is full.
  }
}

function loadJobs() {
  for (const [prompt, job] of JSON.parse(sessionStorage.getItem(JOBS) ?? "[]")) jobs.set(prompt, job);
}

const queued = []; // functions
const refused = [];
export const onQueued = (heard) => queued.push(heard); // Called when a job is accepted,
export const onRefused = (heard) => refused.push(heard); // and, with errors by node, when one is refused.

const queuePrompt = api.queuePrompt;
api.queuePrompt = async function (...prompt) {
  const tab = openTab();
  const known = new Map();
  const settings = Object.fromEntries(idsIn(rootGraph()).map((id) => [id, settingsOf(id, known)]));
  const answer = await queuePrompt.apply(this, prompt).catch((error) => {
    const nodeErrors = error?.response?.node_errors;
    if (nodeErrors) refused.forEach((heard) => heard(nodeErrors));
    throw error;
  });
  if (answer?.prompt_id) {
    jobs.set(answer.prompt_id, { tab, settings });
    saveJobs();
    queued.forEach((heard) => heard());
    if (Object.keys(answer.node_errors ?? {}).length) refused.forEach((heard) => heard(answer.node_errors)); // In part.
  }
  return answer;
};
window.addEventListener("pagehide", saveJobs); // A workflow may have been saved under another name.

app.registerExtension({
  name: "packforcing.told",
  async setup() {
    loadJobs();
    const client = api.clientId ?? sessionStorage.getItem("clientId");
    const answer = client && (await api.fetchApi(`/packforcing/told?client=${encodeURIComponent(client)}`));
    for (const { type, data } of answer?.ok ? await answer.json() : []) tellAll(type, data);
    toldAll();
  },
});

// Shared by the other files here: finds the node, graph and browser tab that an event of this pack refers to.
// An event names its node, its graph's id and its job. Two tabs of one template have the same ids, so the tab that
// was open when a job was queued is remembered by the job's id.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

const TABS = "packforcing.tabs";
const MOST_JOBS = 50;
const MOST_EVENTS = 200;

const tabs = new Map(); // id of a job -> the workflow that was open when it was queued, or its path after a reload
const listeners = new Map(); // kind of event -> functions
const asked = new Map(); // id of a job -> id of a node -> its settings when the job was queued
const told = new Map(); // kind, job and node -> the newest event

let toldAll;
export const allTold = new Promise((done) => (toldAll = done)); // When what was told before a reload is known.

const openTab = () => app.extensionManager?.workflow?.activeWorkflow ?? null;
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
  const tab = tabs.get(prompt);
  const open = openTab();
  return !tab || !open || (typeof tab === "string" ? tab === open.path : tab === open);
}

// Whether two jobs were queued from the same tab, as far as is known.
export function ofOneTab(one, other) {
  const [first, second] = [tabs.get(one), tabs.get(other)].map(pathOf);
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

const CHANGES_ITSELF = /seed|control_after_generate/;

// The values of a node's widgets, without those that change by themselves when a job is queued.
export function settingsOf(node) {
  const widgets = (node.widgets ?? []).filter(({ name, serialize }) => serialize !== false && !CHANGES_ITSELF.test(name));
  return JSON.stringify(widgets.map(({ value }) => value));
}

// The same when a job was queued; undefined after a reload, and for nodes in subgraphs.
export const settingsOfJob = (prompt, node) => asked.get(prompt)?.get(String(node.id));

function saveTabs() {
  const newest = [...tabs].slice(-MOST_JOBS).map(([prompt, tab]) => [prompt, pathOf(tab)]);
  sessionStorage.setItem(TABS, JSON.stringify(newest));
}

function loadTabs() {
  for (const [prompt, path] of JSON.parse(sessionStorage.getItem(TABS) ?? "[]")) tabs.set(prompt, path);
}

const queuePrompt = api.queuePrompt;
api.queuePrompt = async function (...prompt) {
  const tab = openTab();
  const settings = new Map((rootGraph()?.nodes ?? []).map((node) => [String(node.id), settingsOf(node)]));
  const answer = await queuePrompt.apply(this, prompt);
  if (answer?.prompt_id && tab) {
    tabs.set(answer.prompt_id, tab);
    saveTabs();
  }
  if (answer?.prompt_id) asked.set(answer.prompt_id, settings);
  if (asked.size > MOST_JOBS) asked.delete(asked.keys().next().value);
  return answer;
};
window.addEventListener("pagehide", saveTabs); // A workflow may have been saved under another name.

app.registerExtension({
  name: "packforcing.told",
  async setup() {
    loadTabs();
    const client = api.clientId ?? sessionStorage.getItem("clientId");
    const answer = client && (await api.fetchApi(`/packforcing/told?client=${encodeURIComponent(client)}`));
    for (const { type, data } of answer?.ok ? await answer.json() : []) tellAll(type, data);
    toldAll();
  },
});

// What nodes inside a subgraph say is shown by the subgraph's node, while the subgraph itself is not open.
import { app } from "../../scripts/app.js";
import { idsIn, nodeOf, rootGraph } from "./graph.js";
import { WARNING } from "./folded.js";
import { inLanguage } from "./words.js";

const INPUTS = -10; // What links inside a subgraph have as the id of a node where they come from its inputs,
const OUTPUTS = -20; // and where they lead to its outputs.

export const openGraph = () => app.canvas?.graph ?? rootGraph();

// The node of the open graph that contains the node with an id such as "5:3", or null if that is in the open graph itself.
export function hostOf(id) {
  const parts = String(id).split(":");
  const around = parts.slice(0, -1).map((_, depth) => nodeOf(parts.slice(0, depth + 1).join(":")));
  return around.find((node) => node?.subgraph && node.graph === openGraph()) ?? null;
}

// One event for the events of nodes inside a subgraph: the newest video, and the warnings of all as `warnings`.
export function combined(events) {
  const bySerial = [...events].sort((one, other) => one.serial - other.serial);
  const last = bySerial.findLast((event) => event.video) ?? { ...bySerial.at(-1), text: "", video: null, refusal: "" };
  const warnings = bySerial.flatMap((event) => {
    const text = event === last ? "" : [event.refusal ?? "", event.text].join("\n");
    const lines = text.split("\n").filter((line) => WARNING.test(line));
    return lines.map((line) => `${nodeOf(event.node)?.title ?? ""}: ${inLanguage(line)}`);
  });
  return { event: last, warnings };
}

let idsBefore = new Set(); // What was there when `follow` looked last,
let nodesBefore = new WeakSet();
const nodeOfEvent = new WeakMap(); // and an event's node then, as a WeakRef.
const numberOf = (id) => String(id).split(":").at(-1);

// Nodes that are put into a subgraph keep their number (if taken out, they get another one); when that is undone they are
// made again. Calls `moved(event, id)` for each event whose node has another id now. Others are left alone.
export function follow(events, moved) {
  const ids = idsIn(rootGraph());
  const born = ids.filter((id) => !idsBefore.has(id) && nodeOf(id));
  for (const event of events) {
    const node = nodeOf(event.node);
    const last = nodeOfEvent.get(event)?.deref();
    const isMade = (other) => !nodesBefore.has(other) && other.comfyClass === last.comfyClass;
    const isFound = (id) =>
      numberOf(id) === numberOf(event.node) && (nodeOf(id) === last || isMade(nodeOf(id)));
    const found = node || !last ? [] : born.filter(isFound);
    if (node) nodeOfEvent.set(event, new WeakRef(node));
    else nodeOfEvent.delete(event);
    if (found.length === 1) moved(event, found[0]);
  }
  idsBefore = new Set(ids);
  nodesBefore = new WeakSet(ids.map(nodeOf).filter(Boolean));
}

function allNodes(graph) {
  return (graph?.nodes ?? []).flatMap((node) => [node, ...allNodes(node.subgraph)]);
}

const hostsOf = (graph) => allNodes(rootGraph()).filter((node) => node.subgraph === graph);
const linksOf = (graph, ids) => [...(ids ?? [])].map((id) => graph.getLink(id)).filter(Boolean);

// The nodes that links lead to, inside subgraphs and outside too.
function targetsOf(graph, ids) {
  return linksOf(graph, ids).flatMap((link) => {
    if (Number(link.target_id) === OUTPUTS)
      return hostsOf(graph).flatMap((host) => targetsOf(host.graph, host.outputs[link.target_slot]?.links));
    const node = graph.getNodeById(link.target_id);
    if (!node?.subgraph) return node ? [node] : [];
    return targetsOf(node.subgraph, node.subgraph.inputs[link.target_slot]?.linkIds);
  });
}

// What links come from, in the same way: { node }, or { node, input } for an input of a subgraph that has no link.
function sourcesOf(graph, ids) {
  return linksOf(graph, ids).flatMap((link) => {
    if (Number(link.origin_id) === INPUTS)
      return hostsOf(graph).flatMap((host) => {
        const input = host.inputs[link.origin_slot];
        return input?.link == null ? [{ node: host, input }] : sourcesOf(host.graph, [input.link]);
      });
    const node = graph.getNodeById(link.origin_id);
    if (!node?.subgraph) return node ? [{ node }] : [];
    return sourcesOf(node.subgraph, node.subgraph.outputs[link.origin_slot]?.linkIds);
  });
}

export const nodesAfter = (node) => (node.outputs ?? []).flatMap((output) => targetsOf(node.graph, output.links));
export const nodesBeforeInput = (node, input) =>
  (input.link == null ? [] : sourcesOf(node.graph, [input.link])).filter(({ input: own }) => !own).map(({ node: source }) => source);

// The value of a widget that is fed by a link: that of a value node (Int, Float), or of the subgraph's own widget.
export function fedValue(node, widget) {
  const input = (node.inputs ?? []).find((other) => other.widget?.name === widget.name);
  if (input?.link == null) return undefined;
  const [source] = sourcesOf(node.graph, [input.link]);
  const name = source?.input ? (source.input.widget?.name ?? source.input.name) : "value";
  return source?.node.widgets?.find((other) => other.name === name)?.value;
}

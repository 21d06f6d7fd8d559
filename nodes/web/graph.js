// What the other files here share: no extension of its own.
import { app } from "../../scripts/app.js";

// An id such as "5:3" is node 3 in the subgraph of node 5.
export function nodeOf(id) {
  let graph = app.rootGraph ?? app.graph;
  let node = null;
  for (const part of String(id).split(":")) {
    node = graph?.getNodeById(Number(part));
    graph = node?.subgraph;
  }
  return node;
}

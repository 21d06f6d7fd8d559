// What folded nodes would say and show is shown by the next open node: their warnings, and the videos for a stack of videos.
export const MAKES_VIDEO = "PackForcingStreamingVAEDecode";
export const STACKS_VIDEOS = "PackForcingStackVideos";
const WARNING = /^(Warning|Error): /;

const isFolded = (node) => Boolean(node.flags?.collapsed);
const below = (node) => (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes?.(slot) ?? []);
const above = (node) => (node.inputs ?? []).map((_, slot) => node.getInputNode?.(slot)).filter(Boolean);

function openBelow(node, seen = new Set([node])) {
  return below(node).flatMap((next) => {
    if (seen.has(next)) return [];
    seen.add(next);
    return isFolded(next) ? openBelow(next, seen) : [next];
  });
}

// For open nodes, lines such as 'Sampler: Warning: ...' of the folded nodes before them. `newest`: node -> its event.
export function foldedWarnings(newest) {
  const lines = new Map();
  for (const [node, event] of newest) {
    const warnings = isFolded(node) ? event.text.split("\n").filter((line) => WARNING.test(line)) : [];
    if (!warnings.length) continue;
    for (const open of openBelow(node))
      lines.set(open, [...(lines.get(open) ?? []), ...warnings.map((line) => `${node.title}: ${line}`)]);
  }
  return lines;
}

// The folded nodes whose videos a stack shows while it has none of its own from this job; none for another node.
function sourcesOf(node, newest) {
  if (node.comfyClass !== STACKS_VIDEOS || isFolded(node)) return [];
  const sources = above(node).filter((source) => source.comfyClass === MAKES_VIDEO && isFolded(source));
  const own = newest.get(node);
  const isNewer = (event) => event?.video && !(own?.video && own.serial > event.serial);
  return sources.some((source) => isNewer(newest.get(source))) ? sources : [];
}

// The event of a stack whose videos are being made: what `View.show` takes, with `parts`, one per video.
function together(node, sources, newest) {
  const parts = sources.map((source) => ({ title: source.title, event: newest.get(source) }));
  const events = parts.map((part) => part.event).filter((event) => event?.video);
  const last = events.reduce((one, other) => (other.serial > one.serial ? other : one));
  const own = newest.get(node);
  const said = parts.flatMap(({ title, event }) => (event ? [`${title}: ${event.text.split("\n")[0]}`] : []));
  const text = own && own.serial > last.serial && own.text ? own.text : said.join("\n");
  const share = events.reduce((sum, event) => sum + (event.state === "done" ? 1 : (event.share ?? 0)), 0) / parts.length;
  return { ...last, node: String(node.id), state: share < 1 ? last.state : "running", text, share, parts };
}

// `newest` with the events of stacks, and without those of the folded nodes that they show.
export function withStacks(newest) {
  const all = new Map(newest);
  for (const stack of new Set([...newest.keys()].filter(isFolded).flatMap(below))) {
    const sources = sourcesOf(stack, newest);
    if (!sources.length) continue;
    all.set(stack, together(stack, sources, newest));
    for (const source of sources) all.delete(source);
  }
  return all;
}

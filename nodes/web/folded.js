// What folded nodes would say and show is shown by the next open node: their warnings, and the videos for a stack of videos.
import { nodesBefore } from "./graph.js";
import { inLanguage, inWords } from "./words.js";

export const MAKES_VIDEO = "PackForcingStreamingVAEDecode";
export const STACKS_VIDEOS = "PackForcingStackVideos";
export const WARNING = /^(Warning|Error): /;

const isFolded = (node) => Boolean(node.flags?.collapsed);
const below = (node) => (node.outputs ?? []).flatMap((_, slot) => node.getOutputNodes?.(slot) ?? []);

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
      lines.set(open, [...(lines.get(open) ?? []), ...warnings.map((line) => `${node.title}: ${inLanguage(line)}`)]);
  }
  return lines;
}

const sourcesOf = (stack) => nodesBefore(stack).filter((source) => source.comfyClass === MAKES_VIDEO);

// Whether a stack shows its sources: if some are folded, until there is a newer video of its own.
function showsSources(node, newest) {
  if (!sourcesOf(node).some(isFolded)) return false;
  const own = newest.get(node);
  return sourcesOf(node).some((source) => {
    const event = newest.get(source);
    return event?.video && !(own?.video && own.serial > event.serial);
  });
}

// What a stack calls its videos: by their captions, or else by their nodes.
function titlesOf(stack, sources) {
  const captions = stack.widgets?.find((widget) => widget.name === "captions")?.value ?? "";
  const lines = captions.trimEnd().split("\n");
  return sources.map((source, number) => (lines.length === sources.length && lines[number]) || source.title);
}

// The event of a stack whose videos are being made: what `View.show` takes, with `parts`, one per video.
function together(node, newest) {
  const sources = sourcesOf(node);
  const titles = titlesOf(node, sources);
  const told = sources.map((source) => newest.get(source));
  const events = told.filter((event) => event?.video);
  const last = events.reduce((one, other) => (other.serial > one.serial ? other : one));
  const isOld = (event) => event && event.prompt !== last.prompt;
  const named = sources.map((_, number) => titles[number] + (isOld(told[number]) ? inWords(" ({job_before})") : ""));
  const parts = sources.map((source, number) => ({ title: named[number], event: told[number], elsewhere: !isFolded(source) }));
  const own = newest.get(node);
  const said = told.flatMap((event, number) => (event ? [`${named[number]}: ${inLanguage(event.text.split("\n")[0])}`] : []));
  const text = own && own.serial > last.serial && own.text ? own.text : said.join("\n");
  const made = events.filter((event) => !isOld(event)).map((event) => (event.state === "done" ? 1 : (event.share ?? 0)));
  const share = made.reduce((sum, one) => sum + one, 0) / parts.length;
  const state = share < 1 ? last.state : "running";
  const id = [...last.node.split(":").slice(0, -1), node.id].join(":"); // They are in one graph.
  return { ...last, node: id, settings: undefined, state, text, share, parts };
}

// The event of a stack that is finished, with what the folded nodes say of their videos.
function withReports(node, own, newest) {
  const sources = sourcesOf(node);
  const titles = titlesOf(node, sources);
  const reports = sources.flatMap((source, number) => {
    const event = newest.get(source);
    const report = event?.text.split("\n").slice(0, 2).map(inLanguage).join(" | ");
    return isFolded(source) && event ? [`${titles[number]}: ${report}`] : [];
  });
  return { ...own, text: [own.text, ...reports].join("\n") };
}

// `newest` with the events of stacks, and without those of the folded nodes that they show.
export function withStacks(newest) {
  const all = new Map(newest);
  for (const stack of new Set([...newest.keys()].flatMap(below))) {
    if (stack.comfyClass !== STACKS_VIDEOS || isFolded(stack)) continue;
    const own = newest.get(stack);
    if (showsSources(stack, newest)) {
      all.set(stack, together(stack, newest));
      for (const source of sourcesOf(stack).filter(isFolded)) all.delete(source);
    } else if (own?.video && !own.known) all.set(stack, withReports(stack, own, newest));
  }
  return all;
}

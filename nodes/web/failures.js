// Why a job failed or was refused, on the node to blame: what the front end says of it hides the reason.
import { api } from "../../scripts/api.js";
import { allTold, nodeOf, ofOneTab, onQueued, onRefused, openTab, remember, settingsOf } from "./graph.js";
import { MAKES_VIDEO } from "./folded.js";

export const UNCHANGED = "Nothing was changed, so nothing ran: this is the finished video. What was said when it was made:";
const FAILURES = "packforcing.failures";
const MOST_FAILURES = 20;
const A_MOMENT_MS = 300;
const OURS = /^PackForcing/; // The types of this pack's nodes,
const OUR_ERROR = /\.PackForcingError$/; // and what it raises in others, such as those that encode a text.

const refused = new Map(); // id of a node -> { text, settings, tab: the workflow that was open }

// [id, text] of each node of the open tab that refused its job, until its settings change or a job is accepted.
export function refusals() {
  const here = [...refused].filter(([, { tab }]) => tab === openTab());
  for (const [id, { settings }] of here) if (settingsOf(id) !== settings) refused.delete(id);
  return here.filter(([id]) => refused.has(id)).map(([id, { text }]) => [id, text]);
}

// `events`: job and node -> its newest event; `heard(event)` shows an event; `nextSerial()`: newer than all of them.
export function followFailures({ events, heard, nextSerial }) {
  // Shows the reason on the node that failed, and which job the videos are of that this job did not come to.
  function show({ node, prompt, ours, how, reason, serial }) {
    for (const event of [...events.values()]) {
      if (!event.video || event.prompt === prompt || event.serial > serial || !ofOneTab(event.prompt, prompt)) continue;
      const failure = `The last job ${how}. This video is of the job before.`;
      heard({ ...event, serial, failure, text: event.text.replace(`${UNCHANGED}\n`, "") });
    }
    if (!ours || !reason || nodeOf(node)?.comfyClass === MAKES_VIDEO) return;
    heard({ node, prompt, workflow: null, state: "done", serial, text: `Error: ${reason}` });
  }

  function note({ node_id, node_type, prompt_id: prompt, exception_message, exception_type }, what) {
    const node = nodeOf(node_id);
    const ours = OURS.test(node?.comfyClass ?? "") || OUR_ERROR.test(exception_type ?? "");
    const how = what ?? `failed at "${node?.title ?? node_type}"`;
    const reason = exception_message?.trim() ?? "";
    const failure = { node: String(node_id), prompt, ours, how, reason, serial: nextSerial() };
    save([...saved(), failure]);
    setTimeout(() => show(failure), A_MOMENT_MS); // The tab of a quick job is known a moment later.
  }

  api.addEventListener("execution_error", ({ detail }) => note(detail));
  api.addEventListener("execution_interrupted", ({ detail }) => note(detail, "was stopped"));
  api.addEventListener("execution_success", ({ detail }) => forget(detail.prompt_id));
  allTold.then(() => saved().forEach(show));
}

// Kept for a reload: the server tells only what nodes said themselves.
const saved = () => JSON.parse(sessionStorage.getItem(FAILURES) ?? "[]");
const save = (all) => remember(FAILURES, all.slice(-MOST_FAILURES));
const forget = (prompt) => save(saved().filter((failure) => !ofOneTab(failure.prompt, prompt)));

// ComfyUI blames every input that a node checks itself. Of those with one reason, the inputs that it names are left.
function blamed(errors) {
  const reasonOf = ({ details, extra_info }) => details.replace(`${extra_info?.input_name} - `, "");
  const names = (error) => new RegExp(`\\b${error.extra_info?.input_name}\\b`).test(reasonOf(error));
  return errors.filter((error, number) => {
    if (error.type !== "custom_validation_failed") return true;
    const alike = errors.filter((other) => other.type === error.type && reasonOf(other) === reasonOf(error));
    return alike.some(names) ? names(error) : errors.indexOf(alike[0]) === number;
  });
}

function textOf({ type, message, details, extra_info }) {
  const own = type === "custom_validation_failed" && details.replace(`${extra_info?.input_name} - `, "");
  return `Error: ${own || `${message}: ${details}`}`;
}

onRefused((nodeErrors) => {
  refused.clear();
  for (const [id, report] of Object.entries(nodeErrors)) {
    if (!OURS.test(report.class_type)) continue;
    report.errors = blamed(report.errors); // The front end marks these.
    const said = report.errors.filter(({ type }) => type !== "value_not_in_list"); // Its list may be very long.
    const text = [...new Set(said.map(textOf))].join("\n");
    if (text) refused.set(id, { text, settings: settingsOf(id), tab: openTab() });
  }
});
onQueued(() => refused.clear());

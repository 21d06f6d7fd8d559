// Lets the lines that a node of this pack says break between words, and makes room for some of them.
// The front end breaks them inside words and shows two; the rest has to be found by scrolling.
import { app } from "../../scripts/app.js";

const TEXT = "$$node-text-preview";
const OURS = "packforcing-text";
const STYLE = `.${OURS} .break-all { word-break: normal; overflow-wrap: anywhere; }`;
const SIDES = 52; // The widget's margin and the text's padding, left and right; above and below they take 36.
const ABOVE_AND_BELOW = 36;
const LINE = 16;
const MOST_LINES = 5; // More than that scrolls.

const pen = document.createElement("canvas").getContext("2d");

function linesOf(text, width) {
  pen.font = "12px Inter, sans-serif";
  let lines = 0;
  for (const paragraph of text.split("\n")) {
    let line = "";
    lines += 1;
    for (const word of paragraph.split(" ")) {
      const longer = line ? `${line} ${word}` : word;
      if (line && pen.measureText(longer).width > width) lines += 1;
      line = line && pen.measureText(longer).width > width ? word : longer;
    }
  }
  return lines;
}

function prepare(node, widget) {
  widget.props = { ...widget.props, class: OURS };
  widget.options.getMinHeight = () =>
    ABOVE_AND_BELOW + LINE * Math.min(MOST_LINES, linesOf(String(widget.value ?? ""), node.size[0] - SIDES));
}

app.registerExtension({
  name: "packforcing.text",
  setup() {
    document.head.appendChild(document.createElement("style")).textContent = STYLE;
  },
  nodeCreated(node) {
    if (!node.comfyClass?.startsWith("PackForcing") || !node.addCustomWidget) return;
    const add = node.addCustomWidget;
    node.addCustomWidget = function (widget) {
      if (widget?.name === TEXT && widget.options) prepare(this, widget);
      return add.apply(this, arguments);
    };
  },
});

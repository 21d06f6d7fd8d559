// Lets a node that makes a film show the frames while it is made, and the film when it is there, run after run.
// The front end prefers a preview to an output even when the node is done, and plays nothing but films on a node that
// has shown one; so the film would never appear behind a preview, nor a preview behind a film.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";
import { nodeOf } from "./graph.js";

const FILM_MAKER = "PackForcingStreamingVAEDecode";
const PICTURES = ["$$canvas-image-preview", "$$comfy_animation_preview"];
const FILM = "video-preview";

const keyOf = (node) => (node.graph === app.rootGraph ? String(node.id) : `${node.graph.id}:${node.id}`);

function removeWidgets(node, names) {
  for (const widget of (node.widgets ?? []).filter((one) => names.includes(one.name))) {
    if (node.removeWidget) node.removeWidget(widget);
    else {
      widget.onRemove?.();
      node.widgets.splice(node.widgets.indexOf(widget), 1);
    }
  }
}

function makeRoomForFrames({ detail }) {
  const node = nodeOf(detail.displayNodeId ?? detail.nodeId);
  if (node?.comfyClass !== FILM_MAKER || node.previewMediaType !== "video") return;
  delete app.nodeOutputs?.[keyOf(node)];
  node.images = node.videoContainer = node.previewMediaType = undefined;
  removeWidgets(node, [FILM]);
}

function makeRoomForFilm(node) {
  delete app.nodePreviewImages?.[keyOf(node)];
  node.imgs = node.preview = undefined;
  removeWidgets(node, PICTURES);
  node.setDirtyCanvas?.(true, true);
}

app.registerExtension({
  name: "packforcing.film",
  setup() {
    api.addEventListener("b_preview_with_metadata", makeRoomForFrames);
  },
  nodeCreated(node) {
    if (node.comfyClass !== FILM_MAKER) return;
    const executed = node.onExecuted;
    node.onExecuted = function () {
      makeRoomForFilm(this);
      return executed?.apply(this, arguments);
    };
  },
});

"""Where the nodes of a template stand: in columns from left to right, so close that their text can be read at once.

The front end opens a template with the whole graph in view, whatever view is stored in it, and draws no text on nodes
at a zoom below 0.571 (a font of 8 pixels). So a graph must not be larger than about 1,870 by 1,160; within that, links
should lead rightwards and not behind other nodes. Graphs are small: all ways to break the nodes into columns are tried.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from itertools import combinations, pairwise
from typing import Any

import numpy as np

Node = dict[str, Any]
Columns = list[list[Node]]

WINDOW = (1440, 900)
"""The browser window for which templates are laid out, in pixels."""
FILLED, MARGIN = 0.75, 20
"""The front end fits a graph, and this many pixels around it, into this share of the window."""
READABLE = 0.585
"""A little more than the zoom from which the front end draws text."""
TITLE, ABOVE = 30, 28
"""The height of a title bar, and what is free above it: the badge with the pack's name is drawn there."""
COLUMN_GAP = 45
MOST_COLUMNS = 6
COLLAPSED_WIDTH = 200
ROOM = {
    "PackForcingDemoModels": 110,
    "PackForcingModelLoader": 70,
    "PackForcingKVCache": 110,
    "PackForcingSampler": 110,
    "PackForcingTimedPrompts": 110,
    "PackForcingStreamingVAEDecode": 280,
    "PackForcingStackVideos": 160,
    "SaveVideo": 200,
}
"""By how much a node grows when it runs, about: a line of text, a film."""
CURVE = np.linspace(0, 1, 25)[1:-1, None]


def arrange(graph: dict[str, Any]) -> float:
    """Gives every node its `pos`; returns the zoom at which the graph opens. Notes come first."""
    choices = [columns for order in _orders(graph) for columns in _breaks(order)]
    by_id = {node["id"]: node for node in graph["nodes"]}
    links = [(by_id[source], slot, by_id[target], into) for _, source, slot, target, into, _ in graph["links"]]
    zooms = [_zoom(columns) for columns in choices]
    wanted = min(READABLE, max(zooms))
    fits = [(columns, zoom) for columns, zoom in zip(choices, zooms, strict=True) if zoom >= wanted]
    columns, zoom = min(fits, key=lambda choice: (_untidiness(choice[0], links), -choice[1]))
    _place(columns)
    return zoom


def _orders(graph: dict[str, Any]) -> Iterator[list[Node]]:
    """The nodes by their distance from the inputs: loaders right before what they feed, or first of all."""
    depth: dict[int, int] = defaultdict(int)
    for _ in graph["nodes"]:  # as many rounds as the longest path can have
        for _, source, _, target, _, _ in graph["links"]:
            depth[target] = max(depth[target], depth[source] + 1)
    yield _in_order(graph, depth)
    for _, source, *_ in graph["links"]:
        if not any(link[3] == source for link in graph["links"]):
            depth[source] = min(depth[link[3]] for link in graph["links"] if link[1] == source) - 1
    yield _in_order(graph, depth)


def _in_order(graph: dict[str, Any], depth: dict[int, int]) -> list[Node]:
    return sorted(graph["nodes"], key=lambda node: (node["type"] != "MarkdownNote", depth[node["id"]]))


def _breaks(order: list[Node]) -> Iterator[Columns]:
    for count in range(min(MOST_COLUMNS, len(order))):
        for breaks in combinations(range(1, len(order)), count):
            edges = [0, *breaks, len(order)]
            yield [order[a:b] for a, b in pairwise(edges)]


def size(node: Node) -> tuple[float, float]:
    """Width and height as drawn, without the title bar."""
    collapsed = node.get("flags", {}).get("collapsed")
    return (COLLAPSED_WIDTH, 0) if collapsed else tuple(node["size"])


def _zoom(columns: Columns) -> float:
    width = sum(max(size(node)[0] for node in column) for column in columns) + COLUMN_GAP * (len(columns) - 1)
    height = max(sum(_step(node) for node in column[:-1]) + size(column[-1])[1] for column in columns) + TITLE
    return FILLED * min(WINDOW[0] / (width + MARGIN), WINDOW[1] / (height + MARGIN))


def _step(node: Node) -> float:
    """From a node's top to that of the one below it."""
    grows = 0 if node.get("flags", {}).get("collapsed") else ROOM.get(node["type"], 0)
    return size(node)[1] + grows + ABOVE + TITLE


def _place(columns: Columns) -> None:
    x = 0.0
    for column in columns:
        y = 0.0
        for node in column:
            node["pos"] = [x, y]
            y += _step(node)
        x += max(size(node)[0] for node in column) + COLUMN_GAP


def _untidiness(columns: Columns, links: list[tuple[Node, int, Node, int]]) -> float:
    """How many nodes lie before links, and, counted eight times, how many links do not lead rightwards."""
    _place(columns)
    nodes = [node for column in columns for node in column]
    boxes = np.array([[*node["pos"], *size(node)] for node in nodes])
    corner, far = boxes[:, :2] - [0, TITLE], boxes[:, :2] + boxes[:, 2:]
    found = 0
    for source, slot, target, into in links:
        curve = _curve(source, slot, target, into)[:, None]
        behind = ((curve > corner) & (curve < far)).all(axis=2).any(axis=0)
        ends = [node is source or node is target for node in nodes]
        found += int((behind & ~np.array(ends)).sum()) + 8 * (source["pos"][0] >= target["pos"][0])
    return found


def _curve(source: Node, slot: int, target: Node, into: int) -> np.ndarray:
    """Points on a link as the front end bends it, [23, 2]."""
    start = np.add(source["pos"], [size(source)[0], _slot_height(source, slot)])
    end = np.add(target["pos"], [0, _slot_height(target, into)])
    bend = np.array([0.25 * np.linalg.norm(end - start), 0])
    t, s = CURVE, 1 - CURVE
    return s**3 * start + 3 * s**2 * t * (start + bend) + 3 * s * t**2 * (end - bend) + t**3 * end


def _slot_height(node: Node, slot: int) -> float:
    return -TITLE / 2 if size(node)[1] == 0 else min(14 + 20 * slot, size(node)[1])

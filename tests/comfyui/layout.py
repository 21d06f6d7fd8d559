"""Where the nodes of a template stand: in columns from left to right, so close that their text can be read at once.

The front end opens a template with the whole graph in view, whatever view is stored in it, and draws no text on nodes
at a zoom below 0.571 (a font of 8 pixels). So a graph must not be larger than about 1,870 by 1,160; within that, links
should lead rightwards and not behind nodes. Simulated annealing looks for such a layout: it moves nodes to other
columns and rows, and leaves room above a node, through which links can lead. Where links are still behind nodes, a
second annealing moves the nodes freely, which takes a quarter of an hour for 15 nodes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import combinations
from random import Random
from typing import Any

import numpy as np

Node = dict[str, Any]
Columns = list[list[tuple[int, int]]]
"""Of each column its nodes from top to bottom, as (index, steps of free room above it)."""

WINDOW = (1440, 900)
"""The browser window for which templates are laid out, in pixels."""
FILLED, MARGIN = 0.75, 20
"""The front end fits a graph, and this many pixels around it, into this share of the window."""
READABLE = 0.585
"""A little more than the zoom from which the front end draws text."""
TITLE, ABOVE = 30, 28
"""The height of a title bar, and what is free above it: the badge with the pack's name is drawn there."""
COLUMN_GAP = 45
STEP = 40
COLLAPSED_WIDTH, LETTER = 60, 6.6
"""The width of a collapsed node without its title, and about that of a letter of the title."""
COLLAPSED_IN_VUE = 225
"""In Nodes 2.0."""
ROOM = {
    "PackForcingDemoModels": 22,  # Its words are there before it runs.
    "PackForcingModelLoader": 98,
    "PackForcingKVCache": 100,
    "PackForcingSampler": 166,
    "PackForcingTimedPrompts": 166,
    "PackForcingStartFrom": 40,
    "PackForcingStreamingVAEDecode": 280,
    "PackForcingStackVideos": 290,  # What is more has its place in the free part of the window.
    "SaveVideo": 200,
    "MarkdownNote": 60,
    "LoadVideo": 40,
    "PackForcingPromptAt": 40,
    "PackForcingCollectLatents": 40,
}
"""By how much a node grows: when it runs, by nine lines of text (166), five, or a video; the last four in Nodes 2.0."""
UNKNOWN_WORDS = 86
"""By how much a prompt grows beside the demo's text encoder, which names the words that it does not know."""
IN_ORDER = ("PackForcingSampler", "PackForcingStreamingVAEDecode")
"""Of these the first one to run does not stand below, or right of, the next one."""
POINTS = np.linspace(0, 1, 25)[1:-1]
BEZIER = np.stack([(1 - POINTS) ** 3, 3 * (1 - POINTS) ** 2 * POINTS, 3 * (1 - POINTS) * POINTS**2, POINTS**3], axis=1)
AROUND = (-4, 6)
"""How far beside a node, and above and below it, a link counts as behind it, in pixels: links start at its edges."""
TRIES, ROUNDS = 10, 30_000
WARMEST, COLDEST = 6.0, 0.02
FREE_TRIES, FREE_ROUNDS, FREE_WARMEST = 60, 40_000, 20.0
STEPS_ASIDE, STEPS_DOWN = (0, 0, 0, 20, 60, 200), (4, 20, 60, 150)
APART = 24
"""What the second annealing leaves free beside nodes that do not grow, in pixels."""


def arrange(graph: dict[str, Any], rounds: int = ROUNDS, free_rounds: int = FREE_ROUNDS) -> float:
    """Gives every node its `pos`; returns the zoom at which the graph opens. Notes come first."""
    layout = Layout(graph)
    columns = min((_annealed(layout, seed, rounds) for seed in range(TRIES)), key=layout.cost)
    places, _, _ = layout.places(columns)
    if layout.hidden(places).any():
        begun = (layout.places(_annealed(layout, seed, 2 * rounds))[0] for seed in range(FREE_TRIES))
        tried = (_moved_freely(layout, found, seed, free_rounds) for seed, found in enumerate(begun))
        places = min(tried, key=layout.free_cost)
    for node, place in zip(layout.nodes, places, strict=True):
        node["pos"] = place.tolist()
    return _zoom(*layout.extent(places))


def behind(graph: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(type of the source, type of the target, title of the node behind which the link runs) of a placed graph."""
    layout = Layout(graph)
    places = np.array([node["pos"] for node in layout.nodes], dtype=float)
    hidden = layout.hidden(places).any(axis=1)
    pairs = zip(*np.nonzero(hidden), strict=True)
    names = [node.get("title", node["type"]) for node in layout.nodes]
    return [(names[layout.source[link]], names[layout.target[link]], names[node]) for link, node in pairs]


def size(node: Node) -> tuple[float, float]:
    """Width and height as drawn, without the title bar."""
    if is_collapsed(node):
        return COLLAPSED_WIDTH + LETTER * len(node.get("title", node["type"])), 0
    return tuple(node["size"])


def is_collapsed(node: Node) -> bool:
    return bool(node.get("flags", {}).get("collapsed"))


def room(node: Node, nodes: Sequence[Node]) -> int:
    """By how much a node grows when it runs, among the `nodes` of its graph."""
    if is_collapsed(node):
        return 0
    if node["type"] == "CLIPTextEncode" and any(other["type"] == "PackForcingDemoModels" for other in nodes):
        return UNKNOWN_WORDS
    return ROOM.get(node["type"], 0)


class Layout:
    """The nodes and links of a graph as arrays, and what a way to place them costs."""

    def __init__(self, graph: dict[str, Any]) -> None:
        self.nodes: list[Node] = graph["nodes"]
        at = {node["id"]: index for index, node in enumerate(self.nodes)}
        self.sizes = np.array([size(node) for node in self.nodes], dtype=float)
        self.rooms = [room(node, self.nodes) for node in self.nodes]
        self.notes = [index for index, node in enumerate(self.nodes) if node["type"] == "MarkdownNote"]
        links = [(at[source], slot, at[target], into) for _, source, slot, target, into, _ in graph["links"]]
        pairs = combinations(sorted(range(len(self.nodes)), key=lambda index: self.nodes[index]["id"]), 2)
        alike = [(one, other) for one, other in pairs if self.nodes[one]["type"] == self.nodes[other]["type"]]
        self.folded = [pair for pair in alike if all(is_collapsed(self.nodes[index]) for index in pair)]
        self.open = [pair for pair in alike if self.nodes[pair[0]]["type"] in IN_ORDER and pair not in self.folded]
        self.source, self.target = (np.array([link[i] for link in links], dtype=int) for i in (0, 2))
        starts = [[self.sizes[s, 0], _slot_height(self.nodes[s], slot)] for s, slot, _, _ in links]
        ends = [[0, _slot_height(self.nodes[t], into)] for _, _, t, into in links]
        self._starts, self._ends = (np.array(slots, dtype=float).reshape(-1, 2) for slots in (starts, ends))
        self._corner = np.array([0, -TITLE]) - AROUND
        self._far = self.sizes + np.stack([np.zeros(len(self.nodes)), self.rooms], axis=1) + AROUND

    def places(self, columns: Columns) -> tuple[np.ndarray, float, float]:
        """(where each node's upper left corner is, [nodes, 2]; width and height of the graph)."""
        found, x, height = np.zeros((len(self.nodes), 2)), 0.0, 0.0
        for column in columns:
            y = 0.0
            for node, gap in column:
                y += gap * STEP
                found[node] = x, y
                height = max(height, y + self.sizes[node, 1])
                y += self.sizes[node, 1] + self.rooms[node] + ABOVE + TITLE
            x += max(self.sizes[node, 0] for node, _ in column) + COLUMN_GAP
        return found, x - COLUMN_GAP, height + TITLE

    def curves(self, places: np.ndarray) -> np.ndarray:
        """Points on the links as the front end bends them, [links, 23, 2]."""
        start, end = places[self.source] + self._starts, places[self.target] + self._ends
        control = np.stack([start, start, end, end], axis=1)
        bend = np.sqrt(((end - start) ** 2).sum(axis=1)) / 4
        control[:, 1, 0] += bend
        control[:, 2, 0] -= bend
        return BEZIER @ control

    def hidden(self, places: np.ndarray) -> np.ndarray:
        """Which points of which links lie behind which nodes as they are when they have run, [links, 23, nodes]."""
        points = self.curves(places)[:, :, None]
        corner, far = places + self._corner, places + self._far
        x, y = points[..., 0], points[..., 1]
        return (x > corner[:, 0]) & (x < far[:, 0]) & (y > corner[:, 1]) & (y < far[:, 1])

    def cost(self, columns: Columns) -> float:
        """By weight: a graph too large to be read, links that do not lead rightwards, are behind nodes, or long."""
        places, width, height = self.places(columns)
        start, end = places[self.source] + self._starts, places[self.target] + self._ends
        hidden = self.hidden(places)
        long = np.sqrt(((end - start) ** 2).sum(axis=1)).sum() / 2000
        back = np.maximum(0.0, start[:, 0] - end[:, 0])
        wrong = (8.0 * (back > 0) + 0.02 * back).sum() + 5.0 * hidden.any(axis=1).sum() + 0.15 * hidden.sum()
        free = 0.01 * sum(gap for column in columns for _, gap in column) + self.disorder(places)
        large = 2000 * max(0.0, READABLE / _zoom(width, height) - 1) + 0.2 * width * height / 1e6
        return float(long + wrong + free + large)

    def extent(self, places: np.ndarray) -> tuple[float, float]:
        """Width and height of the graph, with its title bars."""
        width, height = (places + self.sizes).max(axis=0) - places.min(axis=0)
        return float(width), float(height) + TITLE

    def overlap(self, places: np.ndarray) -> float:
        """By how many pixels nodes, as they are when they have run, reach into nodes below them, in all."""
        widths = [COLLAPSED_IN_VUE if is_collapsed(node) else size(node)[0] for node in self.nodes]
        left, right = places[:, 0], places[:, 0] + widths
        top, bottom = places[:, 1] - TITLE, places[:, 1] + self.sizes[:, 1] + np.maximum(self.rooms, APART)
        beside = (left[:, None] - APART < right) & (left < right[:, None] + APART)
        deep = np.where(beside & (top[:, None] < top + TITLE + self.sizes[:, 1]), bottom[:, None] - top, 0.0)
        np.fill_diagonal(deep, 0.0)
        return float(np.maximum(deep, 0.0).sum())

    def disorder(self, places: np.ndarray) -> float:
        """Nodes of one type stand in the order in which they run: folded ones below each other, others not above one
        that is farther left.
        """
        lower = [places[other, 1] - places[one, 1] - STEP for one, other in self.folded]
        lower += [
            places[other, 1] - places[one, 1] for one, other in self.open if places[one, 0] > places[other, 0] - STEP
        ]
        return sum(12.0 - 0.05 * step for step in lower if step < 0)

    def free_cost(self, places: np.ndarray) -> float:
        """As `cost`, for nodes that stand anywhere."""
        start, end = places[self.source] + self._starts, places[self.target] + self._ends
        hidden = self.hidden(places)
        long = np.sqrt(((end - start) ** 2).sum(axis=1)).sum() / 2000
        back = np.maximum(0.0, start[:, 0] - end[:, 0])
        wrong = (8.0 * (back > 0) + 0.02 * back).sum() + 20.0 * hidden.any(axis=1).sum() + 0.5 * hidden.sum()
        large = 5000 * max(0.0, READABLE / _zoom(*self.extent(places)) - 1)
        return float(long + wrong + large + 0.5 * self.overlap(places)) + self.disorder(places)

    def first(self) -> Columns:
        """The notes, then the nodes by their distance from the inputs."""
        depth = [0] * len(self.nodes)
        for _ in self.nodes:  # As many rounds as the longest path can have.
            for source, target in zip(self.source, self.target, strict=True):
                depth[target] = max(depth[target], depth[source] + 1)
        rest = [index for index in range(len(self.nodes)) if index not in self.notes]
        columns = [[(index, 0) for index in rest if depth[index] == d] for d in sorted({depth[i] for i in rest})]
        return [[(index, 0) for index in self.notes], *columns] if self.notes else columns


def _zoom(width: float, height: float) -> float:
    return FILLED * min(WINDOW[0] / (width + MARGIN), WINDOW[1] / (height + MARGIN))


def _slot_height(node: Node, slot: int) -> float:
    return -TITLE / 2 if size(node)[1] == 0 else min(14 + 20 * slot, size(node)[1])


def _annealed(layout: Layout, seed: int, rounds: int) -> Columns:
    random, columns = Random(seed), layout.first()
    cost = layout.cost(columns)
    best, least = columns, cost
    for number in range(rounds):
        temperature = WARMEST * (1 - number / rounds) ** 2 + COLDEST
        tried = _changed(layout, columns, random)
        costs = layout.cost(tried)
        if costs < cost or random.random() < math.exp((cost - costs) / temperature):
            columns, cost = tried, costs
            if cost < least:
                best, least = columns, cost
    return best


def _moved_freely(layout: Layout, places: np.ndarray, seed: int, rounds: int) -> np.ndarray:
    """The best of `rounds` small moves and exchanges of nodes. Notes stay."""
    random, places = Random(seed), places.copy()
    movable = [index for index in range(len(layout.nodes)) if index not in layout.notes]
    cost = least = layout.free_cost(places)
    best = places
    for number in range(rounds):
        temperature = FREE_WARMEST * (1 - number / rounds) ** 2 + COLDEST
        tried, one, other = places.copy(), *random.choices(movable, k=2)
        if random.random() < 0.15:
            tried[[one, other]] = places[[other, one]]
        else:
            step = (
                random.choice([0, 0, 0, -20, 20, -60, 60, -200, 200]),
                random.choice([-4, 4, -20, 20, -60, 60, -150, 150]),
            )
            tried[one] = np.maximum(0.0, places[one] + step)
        costs = layout.free_cost(tried)
        if costs < cost or random.random() < math.exp((cost - costs) / temperature):
            places, cost = tried, costs
            if cost < least:
                best, least = places, cost
    return best


def _changed(layout: Layout, columns: Columns, random: Random) -> Columns:
    """A neighbour of a layout: another gap, a node elsewhere, two nodes or two columns exchanged. Notes stay."""
    new = [list(column) for column in columns]
    first, kind = int(bool(layout.notes)), random.random()
    spots = list(_spots(layout, new))
    i, j = random.choice(spots)
    node, gap = new[i][j]
    if kind < 0.4:
        new[i][j] = (node, max(0, gap + random.choice([-4, -2, -1, 1, 2, 4])))
    elif kind < 0.7:
        new[i].pop(j)
        to = random.randrange(-1, len(new))
        if to < 0:
            new.insert(random.randrange(first, len(new) + 1), [(node, random.choice([0, 0, 1, 3]))])
        else:
            lowest = len(layout.notes) if first and to == 0 else 0
            new[to].insert(random.randrange(lowest, len(new[to]) + 1), (node, random.choice([0, gap])))
    elif kind < 0.9:
        k, m = random.choice(spots)
        new[i][j], new[k][m] = (new[k][m][0], gap), (node, new[k][m][1])
    elif len(new) > first:
        new.insert(random.randrange(first, len(new)), new.pop(random.randrange(first, len(new))))
    return [column for column in new if column]


def _spots(layout: Layout, columns: Columns) -> Iterator[tuple[int, int]]:
    for i, column in enumerate(columns):
        yield from ((i, j) for j, (node, _) in enumerate(column) if node not in layout.notes)

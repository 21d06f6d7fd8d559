"""The layout of the templates, from their files alone: the browser's word on it is in test_workflows."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest

from tests.comfyui.draw_workflows import WORKFLOWS, api_names
from tests.comfyui.layout import FILLED, MARGIN, TITLE, WINDOW, Node, arrange, behind, room, size

TEXT_IS_DRAWN_FROM = 8 / 14
"""The front end's smallest font, 8 pixels, over the font of nodes."""


ROUNDS = 1500
"""Of annealing: these graphs are small."""


def node(number: int, kind: str, width: float, height: float, **more) -> Node:
    return {"id": number, "type": kind, "size": [width, height], "flags": {}, **more}


def chain(*nodes: Node) -> dict:
    links = [[a["id"], a["id"], 0, b["id"], 0, "X"] for a, b in pairwise(nodes)]
    return {"nodes": list(nodes), "links": links}


def box(one: Node) -> tuple[float, float, float, float]:
    (x, y), (width, height) = one["pos"], size(one)
    return x, y - TITLE, x + width, y + height


def opening_zoom(nodes: list[Node]) -> float:
    left, top, right, bottom = zip(*map(box, nodes), strict=True)
    width, height = max(right) - min(left) + MARGIN, max(bottom) - min(top) + MARGIN
    return FILLED * min(WINDOW[0] / width, WINDOW[1] / height)


@pytest.mark.parametrize("name", api_names())
def test_a_template_opens_near_enough_to_be_read_and_nodes_have_room_to_grow(name: str):
    nodes = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))["nodes"]
    zoom = opening_zoom(nodes)
    print(name, f"{zoom:.3f}")
    assert zoom > TEXT_IS_DRAWN_FROM
    for one in nodes:
        left, top, right, bottom = box(one)
        grown = bottom + room(one, nodes)
        others = [
            (other["title"] if "title" in other else other["type"], box(other)) for other in nodes if other is not one
        ]
        assert [t for t, (x, y, X, Y) in others if left < X and x < right and top < Y and y < grown] == []


@pytest.mark.parametrize("name", api_names())
def test_no_link_of_a_template_runs_behind_a_node(name: str):
    graph = json.loads((WORKFLOWS / f"{name}.json").read_text(encoding="utf-8"))
    found = behind(graph)
    print(name, len(graph["links"]), "links", *found, sep="\n")
    assert found == []


def test_a_node_before_a_link_is_seen_and_one_beside_it_is_not():
    first, between, last = (node(i, "Any", 200, 300) for i in (1, 2, 3))
    graph = {"nodes": [first, between, last], "links": [[1, 1, 0, 3, 0, "X"]]}
    for (first["pos"], between["pos"], last["pos"]), seen in (
        ([[0, 0], [245, 0], [490, 0]], [("Any", "Any", "Any")]),
        ([[0, 0], [245, 60], [490, 0]], []),
    ):
        assert behind(graph) == seen
    between["type"], between["pos"] = "PackForcingSampler", [245, -380]
    assert behind(graph) == [("Any", "Any", "PackForcingSampler")], "it grows when it runs"


def test_a_chain_that_fits_stands_in_a_line():
    nodes = [node(i, "Any", 200, 300) for i in range(1, 6)]
    zoom = arrange(chain(*nodes), ROUNDS)
    assert [one["pos"] for one in nodes] == [[245.0 * i, 0.0] for i in range(5)]
    assert zoom == pytest.approx(opening_zoom(nodes))


def test_a_chain_that_is_too_long_for_a_line_is_stacked_where_it_costs_least():
    nodes = [node(i, "Any", 300, 300) for i in range(1, 9)]
    zoom = arrange(chain(*nodes), ROUNDS, free_rounds=0)
    columns = sorted({one["pos"][0] for one in nodes})
    print(zoom, [one["pos"] for one in nodes])
    assert zoom > TEXT_IS_DRAWN_FROM
    assert len(columns) == 5, "as many as fit: a link within a column leads back"


def test_loaders_may_stand_right_before_what_they_feed_and_notes_come_first():
    loader, prompt, sampler = node(1, "Loader", 200, 100), node(2, "Prompt", 300, 200), node(3, "Sampler", 300, 450)
    vae, decode, note = node(4, "VAE", 200, 60), node(5, "Decode", 300, 200), node(6, "MarkdownNote", 360, 300)
    graph = chain(loader, prompt, sampler, decode)
    graph["nodes"] += [vae, note]
    graph["links"].append([9, 4, 0, 5, 1, "VAE"])
    arrange(graph, ROUNDS)
    assert note["pos"] == [0.0, 0.0]
    assert loader["pos"][0] < prompt["pos"][0] < sampler["pos"][0] < decode["pos"][0]
    assert vae["pos"][0] < decode["pos"][0]


def test_a_collapsed_node_takes_its_title_only():
    tall = [node(i, "PackForcingSampler", 300, 450) for i in range(1, 5)]
    open_zoom = arrange({"nodes": tall, "links": []}, ROUNDS)
    for one in tall[1:]:
        one["flags"] = {"collapsed": True}
    assert arrange({"nodes": tall, "links": []}, ROUNDS) > open_zoom

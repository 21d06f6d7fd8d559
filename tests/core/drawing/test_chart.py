from __future__ import annotations

import numpy as np

from packforcing_core.drawing.chart import (
    LEFT,
    LINES,
    LOOKED_AT,
    MAP,
    RIGHT,
    WIDTH,
    as_image,
    telemetry_picture,
)


def lines(blocks: int, layers: int = 4, gpu: bool = False) -> list[dict]:
    out = []
    for block in range(blocks):
        chosen = [[past for past in range(block - 2) if (past + layer) % 3 == 0] for layer in range(layers)]
        seconds = 40.0 if block == 0 else 2.0 + 0.2 * (block % 3)
        memory = {"gpu_mb": 9000.0 + block} if gpu else {"rss_mb": 1500.0}
        out.append({"event": "block", "block": block, "seconds": seconds, **memory, "selected": chosen})
        colour = [100.0 + block, 90.0 + block / 4, 80.0 - block / 2]
        out.append({"event": "film", "block": block, "colour": colour, "contrast": 40.0 + block / 2})
    return out


def pixels(picture, colour) -> np.ndarray:
    """[n, 2] rows and columns of one colour."""
    return np.argwhere((np.asarray(picture) == colour).all(axis=-1))


def test_every_line_is_drawn_and_drift_goes_where_it_went():
    picture = telemetry_picture(lines(40), "a title")
    for name, colour in LINES.items():
        found = pixels(picture, colour)
        print(name, len(found), "pixels")
        assert len(found) > 50
    red, blue = pixels(picture, LINES["red"]), pixels(picture, LINES["blue"])
    red, blue = (line[line[:, 1] > WIDTH - RIGHT - 60] for line in (red, blue))
    assert np.median(red[:, 0]) < np.median(blue[:, 0]), "red rose above the first block and blue fell below it"


def test_a_slow_first_block_does_not_flatten_the_others():
    picture = telemetry_picture(lines(40))
    rows = pixels(picture, LINES["time"])
    later = rows[rows[:, 1] > LEFT + 200][:, 0]
    print(f"the other blocks' times spread over {later.max() - later.min()} pixels")
    assert later.max() - later.min() > 2


def test_the_map_marks_what_was_looked_at_by_all_layers():
    looks = {9: [[1], [1]]}
    chosen = [{"event": "block", "block": b, "seconds": 1.0, "selected": looks.get(b, [[], []])} for b in range(10)]
    picture = telemetry_picture(chosen)
    rows = pixels(picture, LOOKED_AT)
    cell_width, cell_height = (WIDTH - LEFT - RIGHT) / 10, MAP / 10
    print(f"{len(rows)} pixels, a cell has {cell_width * cell_height:.0f}")
    assert abs(len(rows) - cell_width * cell_height) < 0.1 * cell_width * cell_height
    assert rows[:, 1].min() >= LEFT + 9 * cell_width - 1


def test_nothing_little_and_nonsense_are_drawn_too():
    sizes = {telemetry_picture(made).size for made in ([], lines(1), lines(2), lines(3, gpu=True))}
    foreign = [
        {"event": "block"},
        {"event": "block", "block": "x"},
        {"event": "film", "block": 0, "colour": [1, 2], "contrast": "high"},
        {"event": "block", "block": 3, "selected": [12, [2, "a"]], "seconds": None},
        {"event": "started", "known": 0},
    ]
    sizes.add(telemetry_picture(foreign).size)
    assert len(sizes) == 1


def test_the_newest_take_of_a_block_counts():
    twice = [*lines(5), {"event": "film", "block": 4, "colour": [0.0, 90.0, 80.0], "contrast": 40.0}]
    assert as_image(telemetry_picture(twice)).shape[0] == 1
    assert not np.array_equal(as_image(telemetry_picture(twice)), as_image(telemetry_picture(lines(5))))


def test_an_hour_of_blocks_is_drawn_in_a_moment():
    picture = as_image(telemetry_picture(lines(600)))
    print(picture.shape, picture.dtype)
    assert picture.min() >= 0
    assert picture.max() <= 1

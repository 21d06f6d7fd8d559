"""Films whose faults are known: each moves its own number, in the window where it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("cv2")
pytest.importorskip("scipy")

from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import Scene, sample_scene
from packforcing_core.laboratory.study.readings import PICTURES, moments_of, read_film, unpacked_pictures
from packforcing_core.miniature.world import COLOURS, FPS, HEIGHT, WIDTH

SECOND = FPS
MOMENTS = (2.0, 4.0)


def one_thing() -> Scene:
    rng = np.random.default_rng(4)
    scene = sample_scene(rng, "bounce")
    while len(scene.things) != 1:
        scene = sample_scene(rng, "bounce")
    return scene


def scene_and_film() -> tuple[str, np.ndarray]:
    scene = one_thing()
    return describe(scene), draw(scene, 4 * SECOND)


def read(prompt: str, film: np.ndarray) -> list[dict[str, float]]:
    found = read_film(film, prompt, FPS, MOMENTS)
    print([{key: round(window[key], 2) for key in ("right", "colours_right", "moving")} for window in found["windows"]])
    return found["windows"]


def test_a_true_film_is_right_in_every_window():
    prompt, film = scene_and_film()
    for window in read(prompt, film):
        assert window["right"] == window["identity_kept"] == window["moving"] == 1.0
        assert window["jumps_per_minute"] == 0
        assert window["colour_drift"] < 1


def test_a_film_that_stops_is_frozen_only_behind_that():
    prompt, film = scene_and_film()
    film[2 * SECOND :] = film[2 * SECOND]
    early, late = read(prompt, film)
    assert (early["moving"], late["moving"]) == (1.0, 0.0)
    assert late["colours_right"] == 1.0
    assert late["right"] < 0.2 < early["right"]  # A prompt that promises motion is not kept by a still image.


def test_a_thing_that_changes_colour_is_wrong_only_behind_that():
    prompt, film = scene_and_film()
    thing = one_thing().things[0]
    other = next(name for name in COLOURS if name != thing.colour)
    changed = draw(replace(one_thing(), things=(replace(thing, colour=other),)), 4 * SECOND)
    film[3 * SECOND :] = changed[3 * SECOND :]
    early, late = read(prompt, film)
    assert early["colours_right"] == 1.0
    assert late["colours_right"] == pytest.approx(0.5)
    assert late["identity_kept"] == pytest.approx(0.5)
    assert late["count_right"] == late["moving"] == 1.0
    curves = read_film(film, prompt, FPS, MOMENTS)["curves"]
    assert curves["colours_right"] == [1.0, 1.0, 1.0, 0.0]


def test_the_pictures_are_of_the_film():
    prompt, film = scene_and_film()
    strip = np.asarray(unpacked_pictures(read_film(film, prompt, FPS, MOMENTS)["pictures"]))
    assert strip.shape == (HEIGHT, PICTURES * WIDTH, 3)
    assert np.array_equal(strip[:, :WIDTH], film[0])
    assert np.array_equal(strip[:, -WIDTH:], film[-1])


def test_a_film_is_read_at_the_moments_it_has():
    assert moments_of(120.0) == (5, 15, 30, 60, 120)
    assert moments_of(15.0) == (5, 15)
    assert moments_of(20.0) == (5, 15, 20)
    assert moments_of(3.0) == (3,)

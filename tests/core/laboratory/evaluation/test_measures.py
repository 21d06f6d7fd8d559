"""Each measure moves by what it measures, put into clips of the little world, and by nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.scene import Path, Scene, Thing, sample_scene
from packforcing_core.laboratory.evaluation.measures import Measures, measure
from packforcing_core.laboratory.evaluation.observe import observe
from packforcing_core.miniature.world import FPS

pytest.importorskip("cv2")

FRAMES = 96


def scene(speed: float = 1.2) -> Scene:
    def thing(shape: str, colour: str, x: float, y: float) -> Thing:
        return Thing(shape, colour, 11.0, Path(18.0, 110.0, speed, x), Path(y, y + 1, 0.0, 0.0))

    return Scene("bounce", "grey", (thing("circle", "red", 0.0, 19.0), thing("square", "yellow", 60.0, 44.0)))


def measured(film: np.ndarray) -> Measures:
    return measure(observe(film, FPS))


@pytest.fixture(scope="module")
def clean() -> Measures:
    return measured(draw(scene(), FRAMES))


def moved(one: Measures, other: Measures) -> set[str]:
    """The measures that differ by more than what matters of each."""
    matters = {
        "colour_drift": 1.0,
        "worst_colour_drift": 1.0,
        "contrast_drift": 0.03,
        "flicker": 0.2,  # a plain background steps by whole levels, all of it at once
        "motion": 0.15,
        "dynamic_degree": 0.05,
        "frozen": 0.02,
        "consistency": 0.02,
    }
    names = {name for name, least in matters.items() if abs(getattr(one, name) - getattr(other, name)) > least}
    print({name: (round(getattr(one, name), 3), round(getattr(other, name), 3)) for name in matters})
    return names | ({"jumps"} if one.jumps != other.jumps else set())


def tinted(film: np.ndarray, ramp: np.ndarray, colour: tuple[float, float, float]) -> np.ndarray:
    return np.clip(np.rint(film + ramp[:, None, None, None] * np.array(colour)), 0, 255).astype(np.uint8)


def test_a_clean_film_has_no_faults(clean: Measures):
    print(clean)
    assert clean.colour_drift < 0.5
    assert abs(clean.contrast_drift) < 0.01
    assert clean.flicker < 0.05
    assert clean.frozen == 0
    assert clean.jumps == ()
    assert clean.consistency > 0.98


def test_random_scenes_neither_flicker_nor_freeze_nor_jump():
    rng = np.random.default_rng(2)
    flicker, frozen, jumps = [], [], []
    for kind in ("bounce", "bounce", "return", "pan") * 2:
        found = measured(draw(sample_scene(rng, kind), 48))
        flicker.append(found.flicker)
        jumps += found.jumps
        if kind != "return":  # while its only thing is out of sight, nothing moves
            frozen.append(found.frozen)
    print(f"largest flicker {max(flicker):.3f}, largest share of frozen frames {max(frozen):.3f}, jumps {jumps}")
    assert max(flicker) < 0.3
    assert max(frozen) == 0
    assert jumps == []


def test_a_colour_that_drifts_moves_the_drift_alone(clean: Measures):
    ramp = np.linspace(0, 1, FRAMES)
    found = measured(tinted(draw(scene(), FRAMES), ramp, (10, -2, -10)))
    assert moved(clean, found) == {"colour_drift", "worst_colour_drift"}
    assert 3 < found.colour_drift < 15


def test_a_colour_that_drifts_and_returns_moves_the_worst_drift_alone(clean: Measures):
    ramp = np.sin(np.linspace(0, np.pi, FRAMES))
    found = measured(tinted(draw(scene(), FRAMES), ramp, (10, -2, -10)))
    assert moved(clean, found) == {"worst_colour_drift"}
    assert found.worst_colour_drift > 2.5 * found.colour_drift


def test_a_contrast_that_fades_moves_the_contrast_alone(clean: Measures):
    film = draw(scene(), FRAMES).astype(np.float64)
    mean = film.mean((1, 2), keepdims=True)
    fading = np.linspace(1.0, 0.6, FRAMES)[:, None, None, None]
    found = measured(np.rint(mean + fading * (film - mean)).astype(np.uint8))
    assert moved(clean, found) == {"contrast_drift"}
    assert found.contrast_drift == pytest.approx(0.6 - 1, abs=0.08)


def test_what_is_flat_has_no_contrast_to_lose():
    """By a ratio a still picture of one colour, coded twice, loses all of its contrast, or gains a thousand times."""
    flat = np.full((FRAMES, 64, 128, 3), 112, np.uint8)
    assert measured(flat).contrast_drift == 0
    flat[-20:, ::2] += 1
    found = measured(flat)
    print(f"one level of noise at the end of a flat film: {found.contrast_drift:.3f}")
    assert abs(found.contrast_drift) < 0.05


def test_brightness_that_flickers_moves_the_flicker_alone(clean: Measures):
    levels = np.random.default_rng(0).choice([-2.0, 2.0], FRAMES)
    found = measured(tinted(draw(scene(), FRAMES), levels, (1, 1, 1)))
    assert moved(clean, found) == {"flicker"}
    assert 0.3 < found.flicker < 2.0


def test_a_freeze_moves_frozen_and_motion_alone(clean: Measures):
    film = draw(scene(), FRAMES)
    film[40:] = film[40]
    found = measured(film)
    assert found.frozen == pytest.approx(55 / 95)
    assert moved(clean, found) == {"frozen", "motion", "dynamic_degree"}


def test_a_film_that_moves_again_after_a_freeze_has_not_jumped(clean: Measures):
    film = np.concatenate([draw(scene(), 48)[:24], np.repeat(draw(scene(), 1, 23), 48, 0), draw(scene(), 24, 24)])
    found = measured(film)
    assert found.frozen == pytest.approx(48 / 95)
    assert found.jumps == ()


@pytest.mark.parametrize("at", [20, 48, 70])
def test_a_jump_moves_the_jumps_alone(clean: Measures, at: int):
    film = np.concatenate([draw(scene(), at), draw(scene(), FRAMES - at, first=at + 25)])
    found = measured(film)
    assert moved(clean, found) == {"jumps"}
    assert found.jumps == (at,)


def test_motion_follows_the_speed():
    speeds = (0.5, 1.0, 2.0, 3.0)
    motions = [measured(draw(scene(speed), FRAMES)).motion for speed in speeds]
    print(dict(zip(speeds, motions, strict=True)))
    assert np.all(np.diff(motions) > 0)
    assert np.allclose(motions, speeds, rtol=0.5)


def test_things_that_change_colour_lower_the_consistency_alone():
    film = draw(scene(), FRAMES)
    other = Scene(
        "bounce",
        "grey",
        tuple(
            Thing(thing.shape, colour, thing.radius, thing.x, thing.y)
            for thing, colour in zip(scene().things, ("green", "blue"), strict=True)
        ),
    )
    film[48:] = draw(other, 48, 48)
    found, clean = measured(film), measured(draw(scene(), FRAMES))
    assert found.consistency < clean.consistency - 0.02
    assert found.frozen == clean.frozen == 0
    assert found.flicker < 0.2


def test_a_large_video_measures_as_its_small_self():
    small = draw(scene(), 24)
    large = small.repeat(8, 1).repeat(8, 2)  # 512 x 1024
    one, other = measured(small), measured(large)
    print(one.motion, other.motion / 8)
    assert other.motion / 8 == pytest.approx(one.motion, rel=0.25)
    assert other.flicker == pytest.approx(one.flicker, abs=0.02)
    assert other.consistency == pytest.approx(one.consistency, abs=0.01)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_the_shortest_videos_have_measures(frames: int):
    found = measured(draw(scene(), frames))
    assert found.frames == frames
    assert all(
        np.isfinite(value) for name, value in found.as_dict().items() if name not in ("jumps", "colour_drift_at")
    )


def test_without_flow_nothing_else_changes():
    film = draw(sample_scene(np.random.default_rng(5), "bounce"), 24)
    whole, rest = observe(film, FPS), observe(film, FPS, flow=False)
    assert whole.flow.max() > 0
    assert whole.sampled_flow.max() > 0
    assert rest.flow.max() == rest.sampled_flow.max() == 0
    for name in ("lab", "contrast", "change", "like_first", "like_previous"):
        assert np.array_equal(getattr(whole, name), getattr(rest, name))

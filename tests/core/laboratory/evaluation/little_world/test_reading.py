"""A frame's facts come back from its pixels: the checker's own error, on ground truth and on spoiled pictures."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest

from packforcing_core.laboratory.evaluation.little_world.checker import check_scene
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.reading import read_frame
from packforcing_core.laboratory.evaluation.little_world.scene import KINDS, Path, Scene, Thing, sample_scene
from packforcing_core.laboratory.evaluation.little_world.truth import truth_at
from packforcing_core.miniature.world import BACKGROUNDS, COLOURS, HEIGHT, SHAPES, WIDTH

ndimage = pytest.importorskip("scipy.ndimage")

SCENES, FRAMES, STRIDE = 204, 2, 33


def random_scenes(seed: int) -> list[tuple[Scene, list[int]]]:
    """SCENES scenes, a third of each kind, and frames of each from a random moment on."""
    rng = np.random.default_rng(seed)
    scenes = []
    for number in range(SCENES):
        first = int(rng.integers(0, 400))
        kind = tuple(KINDS)[number % len(KINDS)]
        scenes.append((sample_scene(rng, kind), [first + STRIDE * index for index in range(FRAMES)]))
    return scenes


def untouched(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return frame


def blurred(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.rint(ndimage.gaussian_filter(frame.astype(np.float32), (1.0, 1.0, 0.0))).astype(np.uint8)


def noisy(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.clip(np.rint(frame + rng.normal(0.0, 8.0, frame.shape)), 0, 255).astype(np.uint8)


def ringing(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurred, then sharpened until the rims overshoot."""
    soft = ndimage.gaussian_filter(frame.astype(np.float32), (1.5, 1.5, 0.0))
    softer = ndimage.gaussian_filter(soft, (1.5, 1.5, 0.0))
    return np.clip(np.rint(soft + 1.0 * (soft - softer)), 0, 255).astype(np.uint8)


def hue_shifted(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Hues turned by 10 degrees one way or the other, in the plane across the grey axis."""
    angle = np.radians(10.0) * rng.choice([-1.0, 1.0])
    axis = np.ones(3) / np.sqrt(3)
    cross = np.cross(np.eye(3), axis)
    turn = np.cos(angle) * np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * np.outer(axis, axis)
    return np.clip(np.rint(frame @ turn), 0, 255).astype(np.uint8)


def cast(frame: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each channel up to 10 % stronger or weaker, and up to 8 levels up or down."""
    return np.clip(np.rint(frame * rng.uniform(0.9, 1.1, 3) + rng.uniform(-8.0, 8.0, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("spoil", "least_right", "most_error"),
    [
        (untouched, 0.995, 0.05),
        (blurred, 0.99, 0.1),
        (noisy, 0.99, 0.1),
        (ringing, 0.99, 0.2),
        (hue_shifted, 0.99, 0.1),
        (cast, 0.99, 0.1),
    ],
)
def test_reads_every_fact_of_random_scenes(spoil: Callable, least_right: float, most_error: float):
    rng = np.random.default_rng(5)
    right: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    errors, wrong = [], []
    for scene, frames in random_scenes(seed=7):
        for frame in frames:
            report = check_scene([spoil(draw(scene, 1, frame)[0], rng)], scene, frame)
            right[scene.kind].append(report.right == 1.0)
            errors += [] if report.position_error is None else [report.position_error]
            wrong += [(report.subject, reason.text) for verdict in report.verdicts for reason in verdict.reasons]
    rates = {kind: float(np.mean(found)) for kind, found in right.items()}
    every = float(np.mean([found for kind in right.values() for found in kind]))
    print(
        f"{spoil.__name__}: {every:.2%} of {SCENES * FRAMES} frames right {rates}, position error "
        f"mean {np.mean(errors):.3f} px, largest {np.max(errors):.2f} px; wrong: {wrong[:4]}"
    )
    assert every >= least_right
    assert np.mean(errors) < most_error


@pytest.mark.parametrize("background", BACKGROUNDS)
@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("shape", SHAPES)
def test_reads_every_combination(shape: str, colour: str, background: str):
    for radius in (10.0, 12.0):
        still = Path(20.3, 100.0, 0.0, 30.4), Path(19.2, 40.0, 0.0, 7.9)
        scene = Scene("bounce", background, (Thing(shape, colour, radius, *still),))
        reading = read_frame(blurred(draw(scene, 1)[0], np.random.default_rng(0)))
        assert reading.background == background
        (seen,) = reading.things
        assert (seen.shape, seen.colour, seen.cut, seen.touching) == (shape, colour, False, False)
        assert abs(seen.x - 50.7) < 0.1
        assert abs(seen.y - 27.1) < 0.1
        assert abs(seen.area / (np.pi * radius**2) - 1) < 0.06


def test_an_empty_frame_shows_nothing():
    reading = read_frame(np.full((HEIGHT, WIDTH, 3), BACKGROUNDS["teal"], np.uint8))
    assert reading.background == "teal"
    assert reading.things == ()


def test_a_background_of_no_palette_has_no_name():
    assert read_frame(np.full((HEIGHT, WIDTH, 3), (250, 160, 220), np.uint8)).background is None


def test_a_thing_of_no_palette_has_no_colour():
    frame = np.full((HEIGHT, WIDTH, 3), BACKGROUNDS["grey"], np.uint8)
    frame[20:40, 30:50] = 0, 0, 0
    (seen,) = read_frame(frame).things
    assert (seen.colour, seen.shape) == (None, "square")


def test_truth_says_what_hides_what():
    def at(x: float, y: float, shape: str, colour: str) -> Thing:
        return Thing(shape, colour, 11.0, Path(x, x + 1, 0.0, 0.0), Path(y, y + 1, 0.0, 0.0))

    scene = Scene("bounce", "dark", (at(50, 30, "circle", "red"), at(58, 30, "square", "blue")))
    front, behind = truth_at(scene, 0)
    shown = draw(scene, 1)[0].astype(float)
    blue = ((shown[..., 2] - 32) / (235 - 32)).clip(0, 1) * (shown[..., 0] < 120)
    print(f"in sight: {behind.area:.1f} of the scene, {blue.sum():.1f} counted in the picture")
    assert front.share == pytest.approx(1.0, abs=0.01)
    assert not front.hidden
    assert behind.hidden
    assert behind.area == pytest.approx(blue.sum(), rel=0.05)
    assert behind.x > 58


def test_truth_says_what_is_out_of_sight():
    leaving = Thing("circle", "red", 10.0, Path(-40.0, 60.0, 1.0, 0.0), Path(30.0, 31.0, 0.0, 0.0))
    scene = Scene("return", "dark", (leaving,))
    (away,), (half,), (back,) = (truth_at(scene, frame) for frame in (0, 40, 60))
    assert (away.area, away.share) == (0.0, 0.0)
    assert half.share == pytest.approx(0.5, abs=0.01)
    assert back.share == pytest.approx(1.0, abs=0.01)
    assert not half.hidden


def test_reading_takes_milliseconds():
    rng = np.random.default_rng(3)
    frames = [frame for kind in KINDS for frame in draw(sample_scene(rng, kind), 40)]
    started = time.process_time()
    for frame in frames:
        read_frame(frame)
    took = (time.process_time() - started) / len(frames) * 1000
    print(f"{took:.2f} ms of one core a frame")
    assert took < 50.0  # a slow, busy machine's bound; an idle one takes 1 to 2

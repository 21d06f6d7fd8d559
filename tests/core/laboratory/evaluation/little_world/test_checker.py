"""Films of the little world pass as they are; each error put into them is found, where it is, and no other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.little_world.checker import check_scene, check_video
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.report import WorldReport
from packforcing_core.laboratory.evaluation.little_world.scene import KINDS, Bars, Path, Scene, Thing, sample_scene

pytest.importorskip("scipy.ndimage")

FRAMES, SPOILED = 96, range(40, 52)


def thing(shape: str, colour: str, x: float, y: float, speed: float = 0.8) -> Thing:
    """At `x`, `y` at first, moving to the right and down."""
    return Thing(shape, colour, 11.0, Path(18.0, 110.0, speed, x - 18.0), Path(18.0, 46.0, speed / 4, y - 18.0))


RED, BLUE, GREEN = (
    thing("circle", "red", 19.0, 19.0),
    thing("square", "blue", 60.0, 44.0, 0.7),
    thing("triangle", "green", 95, 25, 0.3),
)
TWO = Scene("bounce", "dark", (RED, replace(BLUE, y=Path(45.0, 46.0, 0.01, 0.0))))
RETURNS = Scene(
    "return",
    "teal",
    (Thing("square", "yellow", 11.0, Path(-40.0, 70.0, 1.4, 140.0), Path(30.0, 31.0, 0.0, 0.0), False),),
)
PAN = Scene(
    "pan",
    "grey",
    bars=Bars(("red", "green", "blue", "white", "red", "blue", "yellow", "green"), Path(10.0, 100.0, 1.5, 0.0)),
)


def reasons(report: WorldReport) -> dict[str, list[int]]:
    """The frames of each kind of reason."""
    found: dict[str, list[int]] = {}
    for verdict in report.verdicts:
        for kind in {reason.kind for reason in verdict.reasons}:
            found.setdefault(kind, []).append(verdict.frame)
    return found


def with_frames_of(scene: Scene, other: Scene, frames: range = SPOILED) -> np.ndarray:
    """A film of `scene` in which `frames` show `other`."""
    film = draw(scene, FRAMES)
    film[frames.start : frames.stop] = draw(other, len(frames), frames.start)
    return film


def checks(film: np.ndarray, scene: Scene) -> tuple[WorldReport, WorldReport]:
    return check_scene(film, scene), check_video(film, describe(scene))


@pytest.mark.parametrize(("films", "frames"), [(60, 32), pytest.param(201, 48, marks=pytest.mark.long)])
def test_random_films_pass_as_they_are(films: int, frames: int):
    rng = np.random.default_rng(11)
    right, jumps, speeds, wrong = [], 0, [], []
    for number in range(films):
        kind = tuple(KINDS)[number % len(KINDS)]
        scene = sample_scene(rng, kind)
        report = check_video(draw(scene, frames), describe(scene))
        right += [verdict.right for verdict in report.verdicts]
        wrong += [(report.subject, reason.text) for verdict in report.verdicts for reason in verdict.reasons]
        jumps += len(report.motion.jumps)
        assert report.motion.frozen == 0
        if kind == "bounce":
            path = scene.things[0].x, scene.things[0].y
            speeds.append((report.motion.speed, np.hypot(*(axis.speed for axis in path)), len(scene.things)))
    alone = [abs(measured - true) for measured, true, count in speeds if count == 1]
    print(
        f"{np.mean(right):.2%} of {len(right)} frames right, {jumps} jumps, "
        f"speed of one thing off by {np.max(alone):.3f} px a frame"
    )
    print("wrong:", wrong[:5])
    assert np.mean(right) >= 0.995
    assert jumps == 0
    assert np.max(alone) < 0.1


@pytest.mark.parametrize("scene", [TWO, RETURNS, PAN], ids=["two", "returns", "pan"])
def test_films_of_these_tests_pass_as_they_are(scene: Scene):
    for report in checks(draw(scene, FRAMES), scene):
        assert reasons(report) == {}
        assert report.right == 1.0
        assert report.motion.jumps == ()
        assert report.motion.frozen == 0


def test_another_colour_is_found_and_nothing_else():
    film = with_frames_of(TWO, replace(TWO, things=(replace(RED, colour="green"), TWO.things[1])))
    for report in checks(film, TWO):
        assert reasons(report) == {"colour": list(SPOILED)}
        assert report.right == report.colours_right == 1 - len(SPOILED) / FRAMES
        assert report.count_right == report.background_right == 1.0
        assert report.motion.jumps == ()


def test_another_shape_is_found_and_nothing_else():
    film = with_frames_of(TWO, replace(TWO, things=(replace(RED, shape="triangle"), TWO.things[1])))
    for report in checks(film, TWO):
        assert reasons(report) == {"shape": list(SPOILED)}
        assert report.colours_right == 1.0
        assert report.motion.jumps == ()


def test_a_lost_thing_is_found_and_nothing_else():
    film = with_frames_of(TWO, replace(TWO, things=TWO.things[1:]))
    for report in checks(film, TWO):
        assert reasons(report) == {"missing": list(SPOILED)}
        assert report.count_right == 1 - len(SPOILED) / FRAMES
        assert report.identity_kept == 1.0
        assert report.motion.jumps == ()


def test_one_thing_too_many_is_found_and_nothing_else():
    film = with_frames_of(TWO, replace(TWO, things=(*TWO.things, GREEN)))
    for report in checks(film, TWO):
        assert reasons(report) == {"extra": list(SPOILED)}
        assert report.motion.jumps == ()


def test_another_background_is_found_and_nothing_else():
    for report in checks(with_frames_of(TWO, replace(TWO, background="purple")), TWO):
        assert reasons(report) == {"background": list(SPOILED)}
        assert report.objects_right == 1.0


def test_a_freeze_is_found_and_nothing_else():
    film = draw(TWO, FRAMES)
    film[48:] = film[47]
    report = check_video(film, describe(TWO))
    found = reasons(report)
    assert found["motion"] == list(range(min(found["motion"]), FRAMES))
    assert 48 <= min(found["motion"]) <= 58
    # A speed that is judged by the whole film's is no longer the true one's, and an end without a wall is a turn.
    assert set(found) <= {"motion", "speed", "course"}
    assert report.motion.jumps == ()
    # Frozen from the eighth still frame on; the first seven of the film can tell nothing.
    assert report.motion.frozen == pytest.approx((FRAMES - 54) / (FRAMES - 7), abs=0.02)
    assert set(reasons(check_scene(film, TWO))) == {"position"}


def test_a_jump_is_found_and_nothing_else():
    film = np.concatenate([draw(TWO, 48), draw(TWO, 48, first=80)])
    report = check_video(film, describe(TWO))
    assert reasons(report) == {}
    assert report.motion.jumps == (48,)
    assert report.motion.frozen == 0
    assert reasons(check_scene(film, TWO)) == {"position": list(range(48, 96))}


def test_two_things_that_swap_their_colours_jump():
    swapped = replace(TWO, things=(replace(RED, x=TWO.things[1].x, y=TWO.things[1].y), replace(BLUE, x=RED.x, y=RED.y)))
    report = check_video(with_frames_of(TWO, swapped), describe(TWO))
    found = reasons(report)
    assert set(found) == {"course"}
    assert {SPOILED.start, SPOILED.stop} <= set(found["course"])
    assert all(min(abs(frame - SPOILED.start), abs(frame - SPOILED.stop)) <= 6 for frame in found["course"])
    assert report.motion.jumps == (SPOILED.start, SPOILED.stop)


def test_a_shape_left_open_by_the_prompt_must_stay_what_it_was_first():
    scene = RETURNS
    assert describe(scene) == "a shape leaves and returns on a teal background"
    film = draw(scene, 140)
    film[90:] = draw(replace(scene, things=(replace(scene.things[0], colour="white"),)), 50, 90)
    report = check_video(film, describe(scene))
    wrong = reasons(report)
    assert wrong == {"identity": list(range(90, 140))}
    assert report.between(0, 90).right == 1.0
    assert report.motion.jumps == ()


def test_a_thing_that_never_returns_is_missed_once_it_must_be_back():
    empty = replace(RETURNS, things=())
    film = np.concatenate([draw(RETURNS, 70), draw(empty, 130)])
    found = reasons(check_video(film, describe(RETURNS)))
    assert set(found) == {"missing"}
    assert 70 < found["missing"][0] < 140
    assert found["missing"][-1] == 199


def test_a_thing_that_vanishes_within_the_frame_is_missed_at_once():
    film = draw(RETURNS, 40)
    film[20:30] = draw(replace(RETURNS, things=()), 1)[0]
    assert reasons(check_video(film, describe(RETURNS))) == {"missing": list(range(20, 30))}


def test_a_bar_that_comes_back_in_another_colour_is_found():
    other = replace(PAN, bars=replace(PAN.bars, colours=("red", "green", "yellow", *PAN.bars.colours[3:])))
    film = with_frames_of(PAN, other)
    assert set(reasons(check_video(film, describe(PAN)))) == {"identity"}
    assert set(reasons(check_scene(film, PAN))) == {"colour"}


def test_a_missing_bar_is_found():
    film = draw(PAN, FRAMES)
    reading = check_scene(film, PAN)
    assert reading.right == 1.0
    film[30, :, 40:90] = 112, 112, 118
    for report in checks(film, PAN):
        assert reasons(report).keys() <= {"missing", "position", "size"}
        assert 30 in reasons(report)["missing"]
        assert {frame for frames in reasons(report).values() for frame in frames} == {30}


def test_a_report_is_json_and_can_be_cut():
    report = check_video(with_frames_of(TWO, replace(TWO, things=TWO.things[1:])), describe(TWO))
    told = json.loads(report.to_json())
    assert told["frames"] == FRAMES
    assert told["wrong_frames_by_reason"] == {"missing": len(SPOILED)}
    assert told["wrong"]["40"] == ["no red circle"]
    assert report.between(0, 40).right == 1.0
    assert report.between(40, 52).right == 0.0


def test_frames_of_another_size_are_refused():
    with pytest.raises(PackForcingError, match=r"uint8 \[64, 128, 3\]"):
        check_video(np.zeros((1, 32, 32, 3), np.uint8), describe(TWO))

"""Films that only look right frame by frame are found out; what true things do is not."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from packforcing_core.laboratory.evaluation.little_world.checker import check_video
from packforcing_core.laboratory.evaluation.little_world.draw import draw
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import KINDS, Bars, Path, Scene, Thing, sample_scene
from packforcing_core.miniature.load import load_vae
from packforcing_core.vae.streaming import decode, encode, to_frames

pytest.importorskip("scipy.ndimage")

FRAMES = 160
TOP_LEFT = "a red circle at the top left bounces on a dark background"
RETURNS = "a shape at the top left leaves and returns on a dark background"


def film(places, radius=lambda frame: 11.0, colour: str = "red") -> np.ndarray:
    """A red circle whose centre is `places(frame)`."""
    frames = []
    for frame in range(FRAMES):
        x, y = places(frame)
        thing = Thing("circle", colour, radius(frame), Path(x, x + 1e-3, 0.0, 0.0), Path(y, y + 1e-3, 0.0, 0.0))
        frames.append(draw(Scene("bounce", "dark", (thing,)), 1)[0])
    return np.stack(frames)


def bouncing(speed: float = 0.9, left: float = 18.0, top: float = 18.0):
    x, y = Path(18.0, 110.0, speed, left - 18.0), Path(18.0, 46.0, speed / 3, top - 18.0)
    return lambda frame: tuple(float(path.at(np.array(frame))) for path in (x, y))


def teleporting(frame: int) -> tuple[float, float]:
    rng = np.random.default_rng(frame)
    return rng.uniform(18, 110), rng.uniform(18, 46)


def in_circles(frame: int) -> tuple[float, float]:
    """As fast as true things, never straight."""
    return 60 + 10 * np.cos(0.14 * frame), 32 + 10 * np.sin(0.14 * frame)


FOOLS = {  # what is wrong in nearly every frame, and with what
    "stands still": (film(lambda _: (22, 22)), TOP_LEFT, "motion"),
    "teleports every frame": (film(teleporting), TOP_LEFT, "course"),
    "begins elsewhere": (film(bouncing(left=105, top=44)), TOP_LEFT, "place"),
    "pulses while it moves": (film(bouncing(), lambda frame: 11.5 + 2.5 * np.sin(frame / 2)), TOP_LEFT, "size"),
    "never leaves": (film(lambda _: (22, 22)), RETURNS, "motion"),
}


@pytest.mark.parametrize("name", FOOLS)
def test_a_film_that_is_wrong_all_the_time_is_not_right_in_any_frame(name: str):
    frames, prompt, kind = FOOLS[name]
    report = check_video(frames, prompt)
    found = Counter(reason.kind for verdict in report.verdicts for reason in verdict.reasons)
    print(f"{name}: {report.right:.1%} right; {dict(found)}")
    assert report.right < 0.05
    assert found.most_common(1)[0][0] == kind


def test_a_thing_that_goes_in_circles_is_found_wherever_no_wall_is_near():
    report = check_video(film(in_circles), "a red circle bounces on a dark background")
    print(f"{report.right:.1%} right")
    assert report.right < 0.4
    assert {reason.kind for verdict in report.verdicts for reason in verdict.reasons} == {"course"}


def test_a_thing_at_home_where_the_prompt_says_is_right():
    report = check_video(film(bouncing()), TOP_LEFT)
    print({reason.text for verdict in report.verdicts for reason in verdict.reasons})
    assert report.right == 1.0


def test_what_is_to_leave_and_stays_is_wrong_from_then_on():
    report = check_video(film(bouncing(1.4)), RETURNS)
    wrong = [verdict.frame for verdict in report.verdicts if any(r.kind == "stay" for r in verdict.reasons)]
    print(f"wrong from frame {wrong[0]} on")
    assert wrong == list(range(72, FRAMES))


def test_a_thing_that_changes_its_speed_is_wrong_where_it_does():
    """0.9 px a frame, in the last third 0.4."""
    places = bouncing()
    slow = film(lambda frame: places(frame if frame < 110 else 110 + 0.4 * (frame - 110)))
    wrong = [v.frame for v in check_video(slow, TOP_LEFT).verdicts if any(r.kind == "speed" for r in v.reasons)]
    print(f"wrong: {wrong}")
    assert set(range(122, 160)) <= set(wrong)
    assert min(wrong) >= 100


def test_a_thing_that_grows_for_a_minute_is_too_large_in_the_end():
    grown = film(bouncing(), lambda frame: 10 + 3 * frame / FRAMES)
    report = check_video(grown, TOP_LEFT)
    wrong = [v.frame for v in report.verdicts if any(r.kind == "size" for r in v.reasons)]
    print(f"{len(wrong)} frames, from {wrong[0]} on")
    assert wrong[-1] == FRAMES - 1
    assert min(wrong) > 40


def test_a_turn_in_mid_air_is_found_and_one_at_a_wall_is_not():
    def turning(frame):
        return 30 + 0.9 * (frame if frame < 40 else 80 - frame), 30 + 0.05 * frame

    frames = film(turning)[:60]
    report = check_video(frames, "a red circle bounces on a dark background")
    wrong = [v.frame for v in report.verdicts if any(r.kind == "course" for r in v.reasons)]
    print(f"a turn at frame 40 is seen at {wrong}")
    assert 40 in wrong
    assert all(abs(frame - 40) <= 6 for frame in wrong)


def test_a_blend_of_two_colours_is_no_colour():
    red, dark = np.array([224, 40, 40]), np.array([24, 24, 32])
    frames = film(bouncing()).astype(np.float32)
    amount = ((frames - dark) @ (red - dark).astype(np.float32) / float((red - dark) @ (red - dark)))[..., None]
    for name, blend in (("faded", 0.55 * red + 0.45 * dark), ("orange", np.array([200.0, 120.0, 40.0]))):
        report = check_video(np.rint(dark + amount * (blend - dark)).astype(np.uint8), TOP_LEFT)
        print(f"{name}: colours right in {report.colours_right:.1%}")
        assert report.colours_right < 0.05


def test_a_view_that_stands_still_is_wrong():
    bars = Bars(("red", "green", "blue", "white", "red", "blue", "yellow", "green"), Path(10.0, 100.0, 1.5, 0.0))
    scene = Scene("pan", "grey", bars=bars)
    still = replace(scene, bars=replace(bars, view=Path(10.0, 100.0, 0.0, 20.0)))
    reports = [check_video(draw(own, FRAMES), describe(scene)) for own in (scene, still)]
    print([f"{report.right:.1%}" for report in reports])
    assert reports[0].right == 1.0
    assert reports[1].right < 0.05


def test_true_films_long_enough_to_leave_and_bounce_are_right():
    rng, right, wrong = np.random.default_rng(21), [], Counter()
    for number in range(9):
        scene = sample_scene(rng, tuple(KINDS)[number % len(KINDS)])
        report = check_video(draw(scene, 300), describe(scene))
        right += [verdict.right for verdict in report.verdicts]
        wrong.update(reason.kind for verdict in report.verdicts for reason in verdict.reasons)
    print(f"{np.mean(right):.2%} of {len(right)} frames right; wrong {dict(wrong)}")
    assert np.mean(right) >= 0.99


@pytest.mark.integration
@torch.inference_mode()
def test_reconstructions_are_right():
    vae, rng, right, wrong = load_vae(), np.random.default_rng(31), [], Counter()
    for number in range(6):
        scene = sample_scene(rng, tuple(KINDS)[number % len(KINDS)])
        video = torch.from_numpy(draw(scene, 61)).permute(3, 0, 1, 2)[None].float().div_(127.5).sub_(1)
        report = check_video(to_frames(decode(vae, encode(vae, video))), describe(scene))
        right += [verdict.right for verdict in report.verdicts]
        wrong.update(reason.kind for verdict in report.verdicts for reason in verdict.reasons)
    print(f"{np.mean(right):.2%} of {len(right)} frames right; wrong {dict(wrong)}")
    assert np.mean(right) >= 0.98

"""What scenes are prompted with is read back as what they show."""

from __future__ import annotations

import numpy as np
import pytest

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.evaluation.little_world.promise import Promise, Promised, belongs, parse_prompt
from packforcing_core.laboratory.evaluation.little_world.prompt import describe
from packforcing_core.laboratory.evaluation.little_world.scene import Thing, sample_scene


def begins(thing: Thing) -> tuple[str, str]:
    x, y = (float(path.at(np.array(0))) for path in (thing.x, thing.y))
    return "top" if y < 32 else "bottom", "left" if x < 128 / 3 else "middle" if x < 256 / 3 else "right"


def test_every_scenes_prompt_promises_the_scene():
    rng = np.random.default_rng(0)
    for _ in range(300):
        scene = sample_scene(rng)
        things = tuple(
            Promised(*((t.shape, t.colour) if t.named else (None, None)), begins(t) if scene.placed else None)
            for t in scene.things
        )
        assert parse_prompt(describe(scene)) == Promise(scene.kind, scene.background, things)


def test_case_and_a_full_stop_do_not_matter():
    promise = parse_prompt("A red circle bounces  on a dark background.")
    assert promise == Promise("bounce", "dark", (Promised("circle", "red"),))


@pytest.mark.parametrize("prompt", ["", "a cat", "a red circle bounces", "a mauve circle bounces on a dark background"])
def test_other_prompts_are_refused(prompt: str):
    assert not belongs(prompt)
    with pytest.raises(PackForcingError, match="expected one such as"):
        parse_prompt(prompt)

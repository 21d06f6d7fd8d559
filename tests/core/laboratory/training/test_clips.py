"""The mix of worlds that clips are drawn of."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from packforcing_core.errors import PackForcingError
from packforcing_core.laboratory.training.clips import Worlds, draw_clips


def test_a_mix_has_its_worlds_as_often_as_it_says():
    mix = Worlds.parse("one=3, two=3,return=2,pan=2")
    scenes = [mix.sample(np.random.default_rng((0, i))) for i in range(400)]
    kinds = ((scene.kind, len(scene.things)) for scene in scenes)
    found = Counter("two" if things == 2 else "one" if kind == "bounce" else kind for kind, things in kinds)
    print(f"of 400: {dict(found)}")
    for world, share in {"one": 0.3, "two": 0.3, "return": 0.2, "pan": 0.2}.items():
        assert abs(found[world] / 400 - share) < 0.08
    assert {scene.kind for scene in (Worlds({"pan": 1}).sample(np.random.default_rng(i)) for i in range(5))} == {"pan"}


def test_what_returns_unnamed_is_a_shape_to_the_prompt():
    prompts = draw_clips(0, 0, range(12), 1, Worlds({"unnamed": 1})).prompts
    assert all(prompt.startswith("a shape") and "leaves and returns" in prompt for prompt in prompts)


def test_a_clip_of_a_mix_is_its_seed_its_shard_and_its_number():
    mix = Worlds({"two": 1, "pan": 1})
    whole = draw_clips(3, 2, range(4), 1, mix)
    alone = draw_clips(3, 2, [2], 1, mix)
    assert alone.prompts[0] == whole.prompts[2]
    assert torch.equal(alone.video[0], whole.video[2])
    assert draw_clips(3, 1, range(4), 1, mix).prompts != whole.prompts
    assert all(scene.kind == "pan" or len(scene.things) == 2 for scene in whole.scenes)


@pytest.mark.parametrize("text", ["three=1", "one", "one=x", "one=-1,two=2", "one=0", ""])
def test_a_mix_of_no_world_is_refused(text):
    with pytest.raises(PackForcingError, match="one=3,two=3,return=2,pan=2"):
        Worlds.parse(text)

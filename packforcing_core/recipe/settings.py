"""What a user chooses, and the recipe made from it: the one place where settings are checked and completed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..cache.config import Policy, build_policy
from ..checkpoint.families import DEFAULT_FAMILY, Family, by_name, with_overrides
from ..errors import PackForcingError
from ..geometry import VideoGeometry
from ..ranges import in_range
from ..sampler.denoising import Denoising
from ..sampler.rollout import require_followable
from ..sampler.start import Start
from ..text.script import Cue, Script
from ..text.timeline import Snapped, block_seconds, parse_timeline, snap
from .recipe import Recipe, default_policy

Encode = Callable[[Sequence[str]], Sequence[Tensor]]
"""Encodes prompts into embeddings [1, L, text_dim]."""


_KINDS: tuple[tuple[str, Any, str], ...] = (
    ("prompt", str, "a text"),
    ("policy", Policy | str | None, "a cache policy, its name or None"),
    ("knobs", Mapping, "a mapping of names to values"),
    ("preset", str | None, "the name of a preset or None"),
    ("timesteps", Sequence | None, "numbers such as 1000, 750, 500, 250"),
)


@dataclass(frozen=True)
class Settings:
    """A render as the user describes it. None always means automatic: as the checkpoint was trained.

    `prompt` is a text, or several over time as in "[0s] a calm sea [20s] a storm". Prompts cross-fade for
    `blend_seconds`, and `recache` recomputes the KV cache of the visible blocks. `policy` is a cache policy, or the
    name of one with `knobs`. `timesteps` fall from 1000, for example (1000, 750, 500, 250). The length is in `seconds`,
    or in `frames`, which then set `seconds`.
    """

    prompt: str = ""
    seconds: float = 30.0
    width: int = 832
    height: int = 480
    fps: float = 16.0
    seed: int = 0
    policy: Policy | str | None = None
    knobs: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    frames_per_block: int | None = None
    timesteps: tuple[float, ...] | None = None
    shift: float | None = None
    blend_seconds: float = 0.0
    recache: bool = False
    frames: int | None = None

    def __post_init__(self):
        # Stored as one type each: 16 and 16.0 frames per second are the same render.
        for name in ("seconds", "width", "height", "fps", "seed", "blend_seconds"):
            object.__setattr__(self, name, in_range(name, getattr(self, name)))
        for name in ("frames", "frames_per_block", "shift"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, in_range(name, getattr(self, name)))
        if self.frames is not None:
            object.__setattr__(self, "seconds", in_range("seconds", self.frames / self.fps))
        for name, kinds, expected in _KINDS:
            if not isinstance(getattr(self, name), kinds):
                raise PackForcingError(f"{name} is {getattr(self, name)!r:.60}; expected {expected}.")
        if not all(isinstance(name, str) for name in self.knobs):
            raise PackForcingError(f"knobs are {list(self.knobs)!r:.60}; expected text keys.")
        if self.timesteps is not None:
            steps = tuple(in_range("timesteps", step) for step in self.timesteps)
            if not steps or any(after >= before for before, after in pairwise(steps)):
                shown = ", ".join(f"{step:g}" for step in steps)[:100] or "none"
                raise PackForcingError(f"timesteps are {shown}; expected falling numbers such as 1000, 750, 500, 250.")
            object.__setattr__(self, "timesteps", steps)
        if isinstance(self.policy, str):
            build_policy(self.policy, **self.knobs)
        VideoGeometry.from_seconds(self.seconds, width=self.width, height=self.height, fps=self.fps, frames_per_block=1)

    def family(self, trained: Family | None) -> Family:
        """How the checkpoint is sampled; `trained` is how it was trained, None if unknown."""
        family = (trained or DEFAULT_FAMILY) if self.preset is None else by_name(self.preset)
        return with_overrides(
            family, frames_per_block=self.frames_per_block, denoising_steps=self.timesteps, shift=self.shift
        )

    def recipe(self, trained: Family | None = None, span: float | None = None) -> Recipe:
        """The recipe without a start; `span` is the mid_span that a trained compressor was trained with, None without
        one.

        Raises PackForcingError if settings contradict each other or are out of range.
        """
        family = self.family(trained)
        geometry = VideoGeometry.from_seconds(
            self.seconds, width=self.width, height=self.height, fps=self.fps, frames_per_block=family.frames_per_block
        )
        policy, denoising = self._policy(family).fitted_to(span), Denoising.of_family(family)
        if trained is not None and self.preset is None:
            self._require_fit(policy, denoising, trained)
        return Recipe(geometry, policy, denoising, self.seed)

    def _require_fit(self, policy: Policy, denoising: Denoising, trained: Family) -> None:
        """Raises PackForcingError where a policy allows the model's own block length and not the chosen one: the
        policy's own error would advise only to change the policy.
        """
        chosen, own = self.frames_per_block or trained.frames_per_block, trained.frames_per_block
        refused = _refused(policy, chosen, denoising)
        if refused and chosen != own and not _refused(policy, own, denoising):
            raise PackForcingError(
                f"frames_per_block is {chosen}, but {trained.title} was trained with blocks of {own} latent frames. "
                f"Set it to {own}, or on the node to 0 (the model's own). The KV cache does not fit blocks of "
                f"{chosen}: {refused}"
            )

    def _policy(self, family: Family) -> Policy:
        if isinstance(self.policy, Policy):
            return self.policy
        if self.policy is not None:
            return build_policy(self.policy, **self.knobs)
        policy = default_policy(family)
        own = {knob.name: getattr(policy, knob.name) for knob in policy.knobs()}
        return build_policy(policy.name, **{**own, **self.knobs})

    def begun(self, recipe: Recipe, start: Start | None) -> Recipe:
        """The recipe with its start."""
        return recipe if start is None else recipe.begun(start, self.seconds)

    def moments(self, recipe: Recipe) -> tuple[Snapped, ...]:
        """When each prompt starts, moved to the nearest block."""
        return snap([timed.seconds for timed in self.prompts], recipe.geometry, recipe.left_out_blocks)

    @property
    def prompts(self):
        """The prompts in order, with their times."""
        return parse_timeline(self.prompt)

    def script(self, recipe: Recipe, encode: Encode) -> Script:
        """The text of every block."""
        g = recipe.geometry
        blend = round(self.blend_seconds / block_seconds(g))
        contexts = encode([timed.prompt for timed in self.prompts])
        rows = zip(self.moments(recipe), contexts, self.prompts, strict=True)
        script = Script(
            tuple(Cue(moment.block, context, blend, self.recache, timed.change) for moment, context, timed in rows)
        )
        require_followable(script, recipe.denoising)
        return script


def _refused(policy: Policy, frames_per_block: int, denoising: Denoising) -> str:
    """Why the policy does not allow blocks of this length; "" if it does."""
    try:
        policy.partitions(frames_per_block, denoising.window_blocks)
    except PackForcingError as error:
        return str(error)
    return ""

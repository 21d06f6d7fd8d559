"""Everything that determines the latents of a render, except the model and the prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..cache.config import Policy, SinkWindow, Window
from ..cache.layer_kv import KVShape
from ..cache.partitions import Partitions
from ..cache.policy import TRAINED_FRAMES
from ..checkpoint.families import Family
from ..errors import PackForcingError
from ..geometry import PIXEL_FRAMES_PER_LATENT, VideoGeometry, became, block_count, blocks_text, pixel_frames
from ..model.config import WanConfig
from ..ranges import in_range
from ..sampler.denoising import BlockDone, Denoising
from ..sampler.noise import NoiseSource, seeded_noise
from ..sampler.start import Start

NOISE_ALONE = Start()


@dataclass(frozen=True)
class Recipe:
    """Everything that determines the latents of a render, except the model and the prompt."""

    geometry: VideoGeometry
    policy: Policy
    denoising: Denoising
    seed: int
    start: Start = NOISE_ALONE

    def __post_init__(self):
        in_range("seed", self.seed)
        _ = self.partitions  # A policy with contradictory knobs is refused here, before any work.
        if self.denoising.rolling and self.start.latents is not None:
            raise PackForcingError(
                "A rolling rollout begins from noise alone; an image or video needs a preset that samples "
                "block by block."
            )
        if len(self.given) >= self.geometry.blocks:
            raise PackForcingError(
                f"The start gives {block_count(len(self.given))} and the render has {self.geometry.blocks}, so there "
                "is nothing to sample. Raise seconds, or give a shorter start."
            )

    @property
    def given(self) -> list[BlockDone]:
        """The blocks that the render starts with; they are committed, not sampled."""
        return self.start.known(self.geometry.frames_per_block)

    @property
    def left_out_blocks(self) -> int:
        """How many of the first blocks are not shown in the video."""
        return self.start.left_out_blocks(self.geometry.frames_per_block)

    @property
    def video_frames(self) -> int:
        """Pixel frames of the video."""
        return self.frames_before(self.geometry.blocks)

    def frames_before(self, block: int) -> int:
        """Pixel frames of the video before `block`."""
        return max(0, pixel_frames(block * self.geometry.frames_per_block) - pixel_frames(self._left_out_frames))

    @property
    def _left_out_frames(self) -> int:
        return self.left_out_blocks * self.geometry.frames_per_block

    def block_at(self, seconds: float) -> int:
        """The block that shows the second `seconds` of the video: the first one that a retake samples again."""
        in_range("retake_from", seconds)
        return self.geometry.block_at(seconds + pixel_frames(self._left_out_frames) / self.geometry.fps)

    def begun(self, start: Start, seconds: float) -> Recipe:
        """The recipe of a video of `seconds` with this start. Blocks that are not shown in the video are added to that
        length.
        """
        g = self.geometry
        extra = start.left_out_blocks(g.frames_per_block)
        if extra:
            new = round(seconds * g.fps / (PIXEL_FRAMES_PER_LATENT * g.frames_per_block))
            g = replace(g, blocks=extra + max(1, new))
        return replace(self, geometry=g, denoising=start.denoising(self.denoising, g.frames_per_block), start=start)

    def begun_with(self, latents: Tensor | None) -> Recipe:
        """The same recipe with other latents for its start: those that a render has stored."""
        return self if latents is None else replace(self, start=self.start.of(latents))

    def describe_length(self, wished_seconds: float) -> str:
        """How the wished length was rounded to whole blocks, and what the render starts with."""
        g, given = self.geometry, len(self.given)
        if self.left_out_blocks:
            shown = self.video_frames / g.fps
            new = blocks_text(g.blocks - given, g.frames_per_block)
            return (
                f"{became(wished_seconds, shown, g.fps)}: {self.video_frames} frames in {new} latent frames, after "
                f"{block_count(given)} of the start ({g.seconds - shown:.1f} s) that the video does not show"
            )
        told = g.describe_length(wished_seconds)
        if given:
            first = "the first is given" if given == 1 else f"the first {given} are given"
            return f"{told}; {first} ({pixel_frames(given * g.frames_per_block)} frames)"
        if self.denoising.repainted_blocks:
            schedule = self.denoising.of_block(0)
            return (
                f"{told}; the first {self.denoising.repainted_blocks} are regenerated from noise level "
                f"{100 * schedule.sigmas[0]:.0f}% in {len(schedule)} {'step' if len(schedule) == 1 else 'steps'}"
            )
        return told

    def noise(self, take: int = 0) -> NoiseSource:
        """The noise of the render; `take` is the number of the retake."""
        own = seeded_noise(self.seed, self.geometry.block_shape, take)
        return self.start.noise(own, self.denoising, self.geometry.frames_per_block)

    @property
    def partitions(self) -> Partitions:
        """The cache's plan for this clip. Raises PackForcingError if the policy does not fit its own knobs, the block
        length or the rollout.
        """
        return self.unlimited_partitions.limited_to(self.geometry.latent_frames)

    @property
    def compresses_sometime(self) -> bool:
        """Whether this policy compresses past blocks once a clip is long enough."""
        return self.unlimited_partitions.bank is not None

    @property
    def unlimited_partitions(self) -> Partitions:
        """The cache's plan for a clip of any length."""
        return self.policy.partitions(self.geometry.frames_per_block, self.denoising.window_blocks)


def default_policy(family: Family) -> Policy:
    """The KV cache policy that a family was trained with."""
    # A family with full history was trained on clips of 21 latent frames; for those, a window of 21 is the same.
    window_frames = family.attended_frames or family.window_frames or TRAINED_FRAMES
    if family.sink_frames == 0:
        return Window(window_frames)
    return SinkWindow(window_frames, family.sink_frames)


def kv_shape(config: WanConfig, geometry: VideoGeometry, dtype) -> KVShape:
    """The sizes of a cache for this model and video size."""
    return KVShape(
        config.num_layers,
        config.num_heads,
        config.head_dim,
        geometry.tokens_per_frame,
        dtype,
        compressed_tokens=geometry.compressed_tokens,
    )

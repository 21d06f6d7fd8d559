"""The start of a render: given clean blocks, or a video to regenerate from partial noise."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..errors import PackForcingError
from .denoising import BlockDone, Denoising
from .noise import NoiseSource

LEFT_OUT = "left out of the video"
"""The kind of a start that is given and not shown."""


@dataclass(frozen=True, eq=False)
class Start:
    """`given` [1, 16, k B_f, h, w]: clean blocks that are committed, not sampled (an image, the end of a video). With
    `left_out` they are not shown in the video.

    `repainted` [1, 16, m B_f, h, w]: the first m blocks start at a later denoising step, from these latents plus the
    noise of that step; `denoise` in 0..1 is the share of the steps that is run. Latents are in model space.
    """

    given: Tensor | None = None
    left_out: bool = False
    repainted: Tensor | None = None
    denoise: float = 1.0

    def __post_init__(self):
        if self.given is not None and self.repainted is not None:
            raise PackForcingError("Got both given blocks and a video to regenerate; expected one of them.")
        if not 0 < self.denoise <= 1:
            raise PackForcingError(f"denoise is {self.denoise:g}; expected more than 0 and at most 1.")

    @property
    def latents(self) -> Tensor | None:
        """The latents of the start, of either kind."""
        return self.repainted if self.given is None else self.given

    @property
    def kind(self) -> str:
        """The kind of start, in one or a few words."""
        if self.latents is None:
            return "none"
        return "video to video" if self.given is None else LEFT_OUT if self.left_out else "shown"

    def of(self, latents: Tensor) -> Start:
        """The same start with other latents."""
        return replace(self, given=latents) if self.given is not None else replace(self, repainted=latents)

    def blocks_of(self, latents: Tensor | None, frames_per_block: int) -> tuple[Tensor, ...]:
        if latents is None:
            return ()
        if latents.shape[2] % frames_per_block:
            raise PackForcingError(
                f"A start of {latents.shape[2]} latent frames does not divide into blocks of {frames_per_block}."
            )
        return latents.split(frames_per_block, dim=2)

    def known(self, frames_per_block: int) -> list[BlockDone]:
        """The given blocks as known blocks for the rollout; they make their selection when they are committed."""
        blocks = self.blocks_of(self.given, frames_per_block)
        return [BlockDone(number, latents, reused=True) for number, latents in enumerate(blocks)]

    def left_out_blocks(self, frames_per_block: int) -> int:
        """How many blocks at the beginning are not shown in the video."""
        return len(self.known(frames_per_block)) if self.left_out else 0

    def denoising(self, denoising: Denoising, frames_per_block: int) -> Denoising:
        """`denoising` with a later first step for the repainted blocks."""
        blocks = len(self.blocks_of(self.repainted, frames_per_block))
        return replace(denoising, repainted_blocks=blocks, denoise=self.denoise)

    def noise(self, noise: NoiseSource, denoising: Denoising, frames_per_block: int) -> NoiseSource:
        """`noise` with the repainted blocks' latents added at their first step: (1 - sigma) x0 + sigma eps."""
        sources = self.blocks_of(self.repainted, frames_per_block)

        def mixed(block: int, step: int) -> Tensor:
            eps = noise(block, step)
            if step > 0 or block >= len(sources):
                return eps
            sigma = denoising.of_block(block).sigmas[0]
            return (1 - sigma) * sources[block] + sigma * eps

        return mixed if sources else noise

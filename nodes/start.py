"""PackForcing Start From: a picture, the end of a film, or a film to paint anew, as where a render begins."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import comfy.model_management
import numpy as np
from comfy_api.v0_0_2 import io

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.geometry import VideoGeometry
from ..packforcing_core.recipe.beginning import (
    at_rate,
    blocks_in,
    given_by_frames,
    given_by_latents,
    last_frames,
    repainted_by_frames,
)
from ..packforcing_core.sampler.start import Start
from ..packforcing_core.vae.wan_vae import WanVAE
from ..packforcing_core.video import probe, read_frames
from .output import video_file
from .sockets import CATEGORY, StartSocket

CONTINUE, REPAINT = "continue", "repaint"
AUTO, KEEP, LEAVE_OUT = "auto", "in the film", "left out"


@dataclass(frozen=True, eq=False)
class StartFrom:
    """What to begin from, before size and block length are known: exactly one of `image` [T, H, W, 3], `video`,
    `samples` [1, 16, T, h, w].
    """

    how: str
    seconds: float
    strength: float
    given_part: str
    image: object | None = None
    video: object | None = None
    samples: object | None = None

    @property
    def left_out(self) -> bool:
        still = self.image is not None and len(self.image) == 1
        return self.given_part == LEAVE_OUT or (self.given_part == AUTO and not still)

    @property
    def needs_vae(self) -> bool:
        return self.samples is None

    def build(self, vae: WanVAE | None, geometry: VideoGeometry) -> Start:
        """Encodes it for a render of this size, rate and block length; `vae` may be None for samples."""
        if self.how == REPAINT:
            latents = (
                given_by_latents(self.samples, geometry, geometry.blocks)
                if vae is None
                else repainted_by_frames(vae, self._all_frames(geometry), geometry)
            )
            return Start(repainted=latents, strength=self.strength)
        blocks = blocks_in(self.seconds, geometry)
        if vae is None:
            return Start(given_by_latents(self.samples, geometry, blocks), self.left_out)
        return Start(given_by_frames(vae, self._last_frames(blocks, geometry), geometry), self.left_out)

    def _last_frames(self, blocks: int, geometry: VideoGeometry) -> list[np.ndarray]:
        count = VideoGeometry(
            geometry.width, geometry.height, geometry.fps, geometry.frames_per_block, blocks
        ).pixel_frames
        if self.image is not None:
            return list(_pictures(self.image[-count:]))
        with ExitStack() as stack:
            file = video_file(self.video, stack)
            return last_frames(_watched(read_frames(file)), float(probe(file).fps), geometry.fps, count)

    def _all_frames(self, geometry: VideoGeometry) -> Iterator[np.ndarray]:
        if self.image is not None:
            yield from _pictures(self.image)
            return
        with ExitStack() as stack:
            file = video_file(self.video, stack)
            yield from at_rate(_watched(read_frames(file)), float(probe(file).fps), geometry.fps)


def _pictures(image) -> Iterator[np.ndarray]:
    for picture in image:
        yield (picture[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()


def _watched(frames: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """A film can be long: the user may interrupt its reading."""
    for frame in frames:
        comfy.model_management.throw_exception_if_processing_interrupted()
        yield frame


class StartFromNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingStartFrom",
            display_name="PackForcing Start From",
            category=CATEGORY,
            description="Where a film begins: from a picture (image to video), from the end of a film or a LATENT "
            "(continuation), or over a film that is painted anew (video to video). Connect one of the three. "
            "Checkpoints that make blocks of 3 or 4 latent frames take a picture as a block that stands still (0.6 to "
            "0.8 s at 16 FPS) and move on from there; frame-wise ones take it as their first frame. None of these "
            "text-to-video checkpoints was trained on given pictures: the closer to what they make, the better.",
            search_aliases=["image to video", "i2v", "continue video", "extend video", "video to video", "start image"],
            inputs=[
                io.Image.Input(
                    "image",
                    optional=True,
                    tooltip="One picture, or several as a clip at the sampler's fps. Scaled to cover the size, the "
                    "middle is used.",
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A film. Another frame rate is adapted, another size cut to fit."
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="A Wan LATENT of the sampler's size, from Collect Latents."
                ),
                io.Combo.Input(
                    "how",
                    options=[CONTINUE, REPAINT],
                    default=CONTINUE,
                    tooltip="continue: what is given is remembered as it is, and the film goes on from its end. "
                    "repaint: the film is made again over the given one.",
                ),
                io.Float.Input(
                    "seconds",
                    default=3.0,
                    min=0.05,
                    max=600.0,
                    step=0.05,
                    tooltip="For continue: how much of the end is given to the model, rounded to blocks. More than the "
                    "memory holds is of no use (5 s with a window of 21).",
                ),
                io.Float.Input(
                    "strength",
                    default=0.75,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For repaint: the share of the denoising steps that is run, rounded to whole steps. With "
                    "the usual four, 0.25, 0.5 and 0.75 are noise levels of 62%, 83% and 94%; 1 keeps nothing.",
                ),
                io.Combo.Input(
                    "given_part",
                    options=[AUTO, KEEP, LEAVE_OUT],
                    default=AUTO,
                    tooltip="For continue: whether the film shows what was given. auto: a picture yes, the end of a "
                    "film no. Left out, `seconds` of the sampler counts what is new.",
                ),
            ],
            outputs=[StartSocket.Output(display_name="start", tooltip="For the sampler's start.")],
        )

    @classmethod
    def execute(
        cls,
        how: str,
        seconds: float,
        strength: float,
        given_part: str,
        image=None,
        video=None,
        latent: dict | None = None,
    ) -> io.NodeOutput:
        connected = [
            name for name, given in (("image", image), ("video", video), ("latent", latent)) if given is not None
        ]
        if len(connected) != 1:
            raise PackForcingError(
                f"Start From has {' and '.join(connected) or 'nothing'} connected; expected image, video or latent."
            )
        samples = None if latent is None else latent["samples"]
        return io.NodeOutput(StartFrom(how, seconds, strength, given_part, image, video, samples))

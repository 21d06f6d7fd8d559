"""PackForcing Start Image / Video: begins a render from an image, the end of a video, or a video to regenerate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from math import ceil
from typing import Any

import comfy.model_management
import numpy as np
from comfy_api.v0_0_2 import io
from comfy_execution.utils import get_executing_context
from torch import Tensor

from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.geometry import VideoGeometry
from ..packforcing_core.ranges import in_range
from ..packforcing_core.sampler.start import Start
from ..packforcing_core.source import (
    adaptations,
    at_rate,
    blocks_in,
    frames_needed,
    given_by_frames,
    given_by_latents,
    last_frames,
    part_used,
    repainted_by_frames,
)
from ..packforcing_core.vae.wan_vae import WanVAE
from ..packforcing_core.video import VideoInfo, probe, read_frames
from .output_paths import video_file
from .sockets import CATEGORY, StartSocket
from .tell import say

CONTINUE, REPAINT = "continue", "video to video"
AUTO, KEEP, LEAVE_OUT = "auto", "show", "hide"


@dataclass(frozen=True, eq=False)
class StartFrom:
    """The start of a render, before its size and block length are known: exactly one of `image` [T, H, W, 3], `video`,
    `samples` [1, 16, T, h, w] (latents). `info` describes the video.
    """

    mode: str
    seconds: float
    denoise: float
    show_source: str
    image: Tensor | None = None
    video: Any | None = None  # An io.Video.
    samples: Tensor | None = None
    info: VideoInfo | None = None

    @property
    def left_out(self) -> bool:
        still = self.image is not None and len(self.image) == 1
        return self.show_source == LEAVE_OUT or (self.show_source == AUTO and not still)

    @property
    def needs_vae(self) -> bool:
        return self.samples is None

    def adaptations(self, geometry: VideoGeometry, any_size: bool) -> tuple[str, ...]:
        """Notes on how the image or video is adapted to a render, and on how much of it is used; `any_size`: whether
        the model can render others.
        """
        seconds = None if self.mode == REPAINT else self.seconds
        if self.image is not None:
            frames, height, width = self.image.shape[:3]
            part = part_used(frames, geometry.fps, geometry, seconds)
            return (*adaptations(width, height, None, geometry, any_size), *part)
        if self.info is not None:
            rate = float(self.info.fps)
            part = part_used(self.info.frames, rate, geometry, seconds)
            return (*adaptations(self.info.width, self.info.height, rate, geometry, any_size), *part)
        return ()

    def build(self, vae: WanVAE | None, geometry: VideoGeometry) -> Start:
        """Encodes the start for a render's size, frame rate and block length. `vae` may be None for latents."""
        if self.mode == REPAINT:
            if self.samples is not None:
                latents = given_by_latents(self.samples, geometry, geometry.blocks)
            else:
                latents = repainted_by_frames(_needed(vae), self._all_frames(geometry), geometry)
            return Start(repainted=latents, denoise=self.denoise)
        blocks = blocks_in(self.seconds, geometry)
        if self.samples is not None:
            return Start(given_by_latents(self.samples, geometry, blocks), self.left_out)
        return Start(given_by_frames(_needed(vae), self._last_frames(blocks, geometry), geometry), self.left_out)

    def _last_frames(self, blocks: int, geometry: VideoGeometry) -> list[np.ndarray]:
        count = VideoGeometry(
            geometry.width, geometry.height, geometry.fps, geometry.frames_per_block, blocks
        ).pixel_frames
        if self.image is not None:
            return list(_pictures(self.image[-count:]))
        with ExitStack() as stack:
            file = video_file(self.video, stack)
            info = probe(file)
            rate = float(info.fps)
            since = max(0, info.frames - frames_needed(rate, geometry.fps, count))
            return last_frames(_watched(read_frames(file, since), info, since), rate, geometry.fps, count)

    def _all_frames(self, geometry: VideoGeometry) -> Iterator[np.ndarray]:
        if self.image is not None:
            yield from _pictures(self.image)
            return
        with ExitStack() as stack:
            file = video_file(self.video, stack)
            info = probe(file)
            yield from at_rate(_watched(read_frames(file), info), float(info.fps), geometry.fps)


def _pictures(image) -> Iterator[np.ndarray]:
    for picture in image:
        yield (picture[..., :3].clamp(0, 1) * 255).round().byte().cpu().numpy()


def _watched(frames: Iterator[np.ndarray], info: VideoInfo, since: int = 0) -> Iterator[np.ndarray]:
    """The same frames, from number `since` on. A video can be long: the node that reads it says how far it is, and can
    be interrupted.
    """
    context, rate = get_executing_context(), float(info.fps)
    duration = (info.frames - since) / rate
    for number, frame in enumerate(frames):
        comfy.model_management.throw_exception_if_processing_interrupted()
        if context is not None and number % ceil(rate) == 0:
            say(context.node_id, f"Reading the start: {number / rate:.0f} s of {duration:.0f} s")
        yield frame
    if context is not None:
        say(context.node_id, "Encoding the start")


def _needed(vae: WanVAE | None) -> WanVAE:
    if vae is None:
        raise PackForcingError(
            "A start image or video must be encoded: connect the Wan2.1 VAE to the sampler's vae input."
        )
    return vae


class StartFromNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PackForcingStartFrom",
            display_name="PackForcing Start Image / Video",
            category=CATEGORY,
            description="What the video begins with: an image (image to video), the end of a video or LATENT "
            "(continue), or a video to regenerate (video to video). Connect one of the three. Checkpoints with "
            "blocks of 3 or 4 latent frames hold the image still for one block (0.6 to 0.8 s at 16 fps); "
            "frame-wise ones take it as their first frame. None of these text-to-video checkpoints was trained to "
            "start from an image: the closer the image is to what they generate, the better.",
            search_aliases=["image to video", "i2v", "continue video", "extend video", "video to video", "start image"],
            inputs=[
                io.Image.Input(
                    "start_image",
                    optional=True,
                    tooltip="One image, or several images as a clip at the sampler's fps. Scaled to cover the size and "
                    "cropped to the middle.",
                ),
                io.Video.Input(
                    "video", optional=True, tooltip="A video. Frame rate and size are adapted, the size by cropping."
                ),
                io.Latent.Input(
                    "latent", optional=True, tooltip="A Wan LATENT of the sampler's size, from Stream to Latent."
                ),
                io.Combo.Input(
                    "mode",
                    options=[CONTINUE, REPAINT],
                    default=CONTINUE,
                    tooltip="continue: the given part goes to the KV cache as it is, and the video continues from "
                    "its end. video to video: the given video is regenerated from partial noise.",
                ),
                io.Float.Input(
                    "seconds",
                    default=3.0,
                    min=0.05,
                    max=600.0,
                    step=0.05,
                    tooltip="For continue: how many seconds of the end are given to the model, rounded to blocks. "
                    "More than the KV cache holds has no effect (5 s with a window of 21).",
                ),
                io.Float.Input(
                    "denoise",
                    default=0.75,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="For video to video: the share of the denoising steps that is run, rounded to whole steps. "
                    "With the usual four, 0.25, 0.5 and 0.75 are noise levels of 62%, 83% and 94%; 1 keeps nothing.",
                ),
                io.Combo.Input(
                    "show_source",
                    options=[AUTO, KEEP, LEAVE_OUT],
                    default=AUTO,
                    tooltip="For continue: whether the video shows what was given. auto: show a start image, hide "
                    "the end of a source video. If hidden, the sampler's `seconds` count only what is new.",
                ),
            ],
            outputs=[StartSocket.Output(display_name="start", tooltip="For the sampler's start.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        mode: str,
        seconds: float,
        denoise: float,
        show_source: str,
        start_image=None,
        video=None,
        latent: dict | None = None,
    ) -> io.NodeOutput:
        in_range("seconds", seconds)
        in_range("denoise", denoise)
        connected = [
            name
            for name, given in (("start_image", start_image), ("video", video), ("latent", latent))
            if given is not None
        ]
        if len(connected) != 1:
            raise PackForcingError(
                f"Start Image / Video has {' and '.join(connected) or 'nothing'} connected; expected one of "
                "start_image, video, latent."
            )
        samples = None if latent is None else latent["samples"]
        info = None if video is None else _info(video)
        start = StartFrom(mode, seconds, denoise, show_source, start_image, video, samples, info)
        text = "" if info is None else "\n".join(info.notes)
        say(cls.hidden.unique_id, text)  # Without notes, this removes those of another video.
        return io.NodeOutput(start, ui={"text": (text,)} if text else None)


def _info(video) -> VideoInfo:
    """A VIDEO's size and rate, with notes on what is changed when it is read and on what is left out."""
    with ExitStack() as stack:
        return probe(video_file(video, stack))

"""Images, videos and latents that a render starts from.

image            repeated for the frames of one block, then encoded: it is held still (frame-wise models: one frame)
end of a video   its last frames, encoded as if the video started there
whole video      encoded, for video-to-video
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import PackForcingError
from .geometry import LATENT_CHANNELS, PIXEL_FRAMES_PER_LATENT, VideoGeometry, pixel_frames
from .vae.config import normalise
from .vae.streaming import StreamingEncoder
from .vae.wan_vae import WanVAE

FRAMES_AT_ONCE = 16


def blocks_in(seconds: float, geometry: VideoGeometry) -> int:
    """The number of blocks closest to `seconds`, at least one."""
    if not 0 < seconds < float("inf"):
        raise PackForcingError(f"Got {seconds} seconds of the video to continue; expected a positive number.")
    return max(1, round(seconds * geometry.fps / (PIXEL_FRAMES_PER_LATENT * geometry.frames_per_block)))


def frames_needed(frame_rate: float, fps: float, count: int) -> int:
    """How many frames from the end of a video `last_frames` uses."""
    return int(count * frame_rate / fps) + 2


def last_frames(frames: Iterable[np.ndarray], frame_rate: float, fps: float, count: int) -> list[np.ndarray]:
    """The last `count` frames, or all there are, of a video with `frame_rate`, converted to `fps`."""
    ratio = frame_rate / fps
    kept = deque(frames, maxlen=frames_needed(frame_rate, fps, count))
    if not kept:
        raise PackForcingError("The start video has no frames.")
    places = (len(kept) - 1 - int(back * ratio + 0.5) for back in range(count))
    return [kept[place] for place in places if place >= 0][::-1]


def at_rate(frames: Iterable[np.ndarray], frame_rate: float, fps: float) -> Iterator[np.ndarray]:
    """Converts a video from `frame_rate` to `fps`: each output frame is the input frame shown at that time."""
    shown = 0
    for number, frame in enumerate(frames):
        while shown * frame_rate < (number + 1) * fps - 1e-6:
            yield frame
            shown += 1


MUCH_LOST = 0.3
"""The share of a start's frame that is not cropped without a warning."""


def adaptations(
    width: int, height: int, frame_rate: float | None, geometry: VideoGeometry, any_size: bool
) -> tuple[str, ...]:
    """Notes on how a start image or video (pixels; FPS, None for images) is adapted to the render's size and rate.
    `any_size`: whether the model can render other sizes.
    """
    notes = []
    if (width, height) != (geometry.width, geometry.height):
        rows, columns = _covering(height, width, geometry.height, geometry.width)
        lost = 1 - geometry.width * geometry.height / (rows * columns)
        warning = "Warning: " if lost >= MUCH_LOST else ""
        cropped = f", and {lost:.0%} of each frame is cropped" if lost >= 0.005 else ""
        turned = (width - height) * (geometry.width - geometry.height) < 0
        way_out = f" To keep more of it, exchange width and height ({geometry.height}x{geometry.width})."
        size = f"{width}x{height}: scaled to cover {geometry.width}x{geometry.height}"
        notes.append(f"{warning}The start is {size}{cropped}.{way_out if warning and turned and any_size else ''}")
    if frame_rate is not None and abs(frame_rate - geometry.fps) > 1e-6:
        notes.append(f"The start has {frame_rate:.5g} FPS: converted to {geometry.fps:g}, at the same speed.")
    return tuple(notes)


def part_used(frames: int, frame_rate: float, geometry: VideoGeometry, seconds: float | None) -> tuple[str, ...]:
    """A note on how much of a clip (`frames` of them, at `frame_rate` FPS) a render uses, if not all of it: to continue
    it, about its last `seconds`; to regenerate it (`seconds` is None), its first blocks.
    """
    wanted = geometry.blocks if seconds is None else blocks_in(seconds, geometry)
    there = max(1, round(frames * geometry.fps / frame_rate))
    whole = ((there - 1) // PIXEL_FRAMES_PER_LATENT + 1) // geometry.frames_per_block
    used = pixel_frames(min(wanted, whole) * geometry.frames_per_block) / geometry.fps
    clip, part = f"{frames / frame_rate:.1f}", f"{used:.1f}"
    if not whole or used >= frames / frame_rate or part == clip:
        return ()
    if seconds is None:
        return (f"Of the clip's {clip} s the first {part} s are used.",)
    return (f"Of the clip's {clip} s the last {part} s are used.",)


def _covering(height: int, width: int, least_height: int, least_width: int) -> tuple[int, int]:
    """The smallest (height, width) of the same shape that covers the least size."""
    scale = max(least_height / height, least_width / width)
    return max(least_height, round(height * scale)), max(least_width, round(width * scale))


def fitted(frames: np.ndarray, width: int, height: int) -> Tensor:
    """uint8 [T, H, W, 3] -> [1, 3, T, height, width] in [-1, 1]: scaled to cover the size, then cropped to the
    centre.
    """
    if frames.ndim != 4 or frames.shape[3] != 3 or 0 in frames.shape:
        raise PackForcingError(f"Got images of shape {list(frames.shape)}; expected [frames, height, width, 3].")
    video = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).float() / 127.5 - 1
    size = _covering(video.shape[2], video.shape[3], height, width)
    if size != tuple(video.shape[2:]):
        video = F.interpolate(video, size, mode="bicubic", antialias=True).clamp_(-1, 1)
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    return video[:, :, top : top + height, left : left + width].transpose(0, 1)[None]


def encoded(vae: WanVAE, frames: Iterable[np.ndarray], geometry: VideoGeometry) -> Tensor:
    """Frames uint8 [H, W, 3] -> latents [1, 16, T, h, w] in model space, float32 on the CPU; a few frames at a time."""
    encoder = StreamingEncoder(vae)
    waiting: list[np.ndarray] = []
    latents: list[Tensor] = []

    def push() -> None:
        latents.append(encoder.push(fitted(np.stack(waiting), geometry.width, geometry.height)).cpu())
        waiting.clear()

    for frame in frames:
        if waiting and frame.shape != waiting[0].shape:
            raise PackForcingError(
                f"The video has frames of {frame.shape[:2]} and of {waiting[0].shape[:2]} pixels; expected one size."
            )
        waiting.append(frame)
        if len(waiting) == FRAMES_AT_ONCE:
            push()
    if waiting:
        push()
    if not latents:
        raise PackForcingError("The start video has no frames.")
    return torch.cat(latents, dim=2)


def given_by_frames(vae: WanVAE, frames: Sequence[np.ndarray], geometry: VideoGeometry) -> Tensor:
    """The last whole blocks that `frames` (uint8 [H, W, 3], at the render's rate) make: [1, 16, k B_f, h, w].

    Too few frames for one block are preceded by copies of the first, so an image becomes a still block.
    """
    per_block = geometry.frames_per_block
    blocks = max(1, ((len(frames) - 1) // PIXEL_FRAMES_PER_LATENT + 1) // per_block)
    needed = pixel_frames(blocks * per_block)
    missing = max(0, needed - len(frames))
    return encoded(vae, [*[frames[0]] * missing, *frames[-(needed - missing) :]], geometry)


def given_by_latents(samples: Tensor, geometry: VideoGeometry, blocks: int) -> Tensor:
    """The last `blocks` whole blocks, or all there are, of latents in the VAE's own scale [1, 16, T, h, w]; the result
    is in model space.
    """
    own = (geometry.latent_height, geometry.latent_width)
    if samples.ndim != 5 or samples.shape[:2] != (1, LATENT_CHANNELS) or tuple(samples.shape[3:]) != own:
        raise PackForcingError(
            f"Got a LATENT of shape {list(samples.shape)} to start from; expected [1, {LATENT_CHANNELS}, frames, "
            f"{own[0]}, {own[1]}] for {geometry.width}x{geometry.height} pixels. Set the sampler's size to the clip's."
        )
    frames = min(blocks, samples.shape[2] // geometry.frames_per_block) * geometry.frames_per_block
    if frames == 0:
        raise PackForcingError(
            f"Got a LATENT of {samples.shape[2]} latent frames to start from, but a block has "
            f"{geometry.frames_per_block}. Use a longer clip; connect a single image to start_image."
        )
    return normalise(samples[:, :, -frames:]).cpu()


def repainted_by_frames(vae: WanVAE, frames: Iterable[np.ndarray], geometry: VideoGeometry) -> Tensor:
    """The first whole blocks of a video, at most as many as the render has: [1, 16, m B_f, h, w]."""
    wanted = pixel_frames(geometry.latent_frames)
    latents = encoded(vae, (frame for frame, _ in zip(frames, range(wanted), strict=False)), geometry)
    whole = latents.shape[2] // geometry.frames_per_block * geometry.frames_per_block
    if whole == 0:
        raise PackForcingError(
            f"The video to regenerate has {latents.shape[2]} latent frames, but a block has "
            f"{geometry.frames_per_block}: it needs {pixel_frames(geometry.frames_per_block)} "
            f"frames or more at {geometry.fps:g} FPS."
        )
    return latents[:, :, :whole]

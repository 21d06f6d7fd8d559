"""Encodes and decodes video with a Wan VAE piece by piece, between pixels and model space."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..errors import PackForcingError
from ..geometry import LATENT_CHANNELS, PIXEL_FRAMES_PER_LATENT, VAE_SPATIAL_STRIDE
from .config import normalise, unnormalise
from .decode_bytes import frames_at_once
from .state import CausalState, memory_format
from .wan_vae import TOGETHER, WanVAE, is_small


class StreamingDecoder:
    """Latent frames in, pixel frames out. Nothing is held back, so there is nothing to flush.

        decoder = StreamingDecoder(vae)
        for latents in blocks:            # [B, 16, T, h, w] in model space, any T
            video = decoder.push(latents) # [B, 3, 4T, 8h, 8w], 4T - 3 frames the first time
        decoder.reset()                   # the next push starts another video

    On a CPU the sizes of the pushes do not matter: the frames are bit for bit those of a single push. On a GPU with
    enough memory, several latent frames run through the network together; then equal pushes give equal bits, others
    agree up to rounding. `device` and `dtype` are those of the computation, by default those of the weights.
    """

    def __init__(self, vae: WanVAE, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        self.vae = vae
        self._like = _compute_like(vae, device, dtype)
        self._state = CausalState()

    @property
    def device(self) -> torch.device:
        """The device of the computation."""
        return self._like.device

    @torch.no_grad()
    def push(self, latents: Tensor) -> Tensor:
        """The pixel frames of the next latent frames, float32 in [-1, 1] on the computing device.

        Raises PackForcingError if the shape is not [B, 16, T, h, w], or differs from that of the video's first push.
        """
        self._require_latents(latents)
        own = _entering(unnormalise(latents.to(self._like.device)), self._like)
        rows, columns = latents.shape[-2:]
        at_once = frames_at_once(self.vae.config, rows, columns, self._like.dtype, self._like.device)
        begun = self._state.started(self.vae.decoder.conv1)
        frames = [self.vae.decode_frames(part, self._state, at_once).float() for part in _calls(own, begun, at_once)]
        return (torch.cat(frames, dim=2) if len(frames) > 1 else frames[0]).clamp_(-1, 1)

    def reset(self) -> None:
        """Clears the state: the next push starts another video."""
        self._state = CausalState()

    def fork(self) -> StreamingDecoder:
        """An independent decoder with the same state."""
        other = StreamingDecoder(self.vae, self._like.device, self._like.dtype)
        other._state.tails.update(self._state.tails)
        return other

    def _require_latents(self, latents: Tensor) -> None:
        _require_shape("latents", latents, LATENT_CHANNELS)
        _require_same_size("latents", latents, self._state.tails.get(self.vae.decoder.conv1))


class StreamingEncoder:
    """Pixel frames in, latent frames out as soon as they are complete.

        encoder = StreamingEncoder(vae)
        for video in clips:               # [B, 3, T, H, W] in [-1, 1], any T
            latents = encoder.push(video) # [B, 16, T', H/8, W/8] in model space; T' may be 0
        encoder.reset()                   # the next push starts another video

    The first pixel frame makes one latent frame, every further four one more. Up to three frames wait for the next
    push; those left at the end are dropped, as everywhere in Wan. `device` and `dtype` as in StreamingDecoder.
    """

    def __init__(self, vae: WanVAE, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> None:
        self.vae = vae
        self._like = _compute_like(vae, device, dtype)
        self._waiting: Tensor | None = None
        self.reset()

    @torch.no_grad()
    def push(self, video: Tensor) -> Tensor:
        """The latent frames that `video` completes, float32, on the computing device.

        Raises PackForcingError if the shape is not [B, 3, T, H, W] with H and W multiples of 8, or differs from that of
        the video's first push.
        """
        self._require_video(video)
        video = video.to(self._like)
        waiting = video if self._waiting is None else torch.cat((self._waiting, video), dim=2)
        latents = []
        while waiting.shape[2] >= self._needed():
            taken = self._taken(waiting)
            frames, waiting = waiting.split((taken, waiting.shape[2] - taken), dim=2)
            at_once = taken if taken > PIXEL_FRAMES_PER_LATENT or self._together(video) else 1
            latents.append(self.vae.encode_frames(_entering(frames, self._like), self._state, at_once))
        self._waiting = waiting.clone()
        return normalise(torch.cat(latents, dim=2)) if latents else self._nothing(video)

    def reset(self) -> None:
        """Clears the state and the waiting frames: the next push starts another video."""
        self._state = CausalState()
        self._waiting = None

    def _needed(self) -> int:
        return PIXEL_FRAMES_PER_LATENT if self._state.started(self.vae.encoder.conv1) else 1

    def _together(self, video: Tensor) -> bool:
        """Whether whole latent frames run through the network together: small images on a GPU, as in compression."""
        rows, columns = (size // VAE_SPATIAL_STRIDE for size in video.shape[3:])
        return self._like.is_cuda and is_small(rows, columns)

    def _taken(self, waiting: Tensor) -> int:
        """How many of the waiting frames the next call takes."""
        needed = self._needed()
        if needed == 1 or not self._together(waiting):
            return needed
        return waiting.shape[2] - waiting.shape[2] % PIXEL_FRAMES_PER_LATENT

    def _nothing(self, video: Tensor) -> Tensor:
        batch, _, _, height, width = video.shape
        size = (height // VAE_SPATIAL_STRIDE, width // VAE_SPATIAL_STRIDE)
        return torch.empty(batch, LATENT_CHANNELS, 0, *size, device=video.device)

    def _require_video(self, video: Tensor) -> None:
        _require_shape("video", video, 3)
        if video.shape[3] % VAE_SPATIAL_STRIDE or video.shape[4] % VAE_SPATIAL_STRIDE:
            raise PackForcingError(
                f"Got a video of {video.shape[4]}x{video.shape[3]} pixels; width and height must be multiples "
                f"of {VAE_SPATIAL_STRIDE}. Crop or resize it first."
            )
        _require_same_size("video", video, self._waiting)


def decode(vae: WanVAE, latents: Tensor) -> Tensor:
    """A whole video from its latents [B, 16, T, h, w] in model space: [B, 3, 4T - 3, 8h, 8w] in [-1, 1]."""
    return StreamingDecoder(vae).push(latents)


def encode(vae: WanVAE, video: Tensor) -> Tensor:
    """The latents, in model space, of a whole video [B, 3, T, H, W] in [-1, 1]: [B, 16, 1 + (T - 1)//4, H/8, W/8]."""
    return StreamingEncoder(vae).push(video)


def to_frames(video: Tensor) -> np.ndarray:
    """A decoded video [1, 3, T, H, W] in [-1, 1] as images: uint8 [T, H, W, 3], rounded to nearest."""
    if video.ndim != 5 or video.shape[:2] != (1, 3):
        raise PackForcingError(f"Got a video of shape {list(video.shape)}; expected [1, 3, T, H, W].")
    pixels = (video[0].permute(1, 2, 3, 0).float() + 1).mul_(127.5).round_().clamp_(0, 255)
    return pixels.to(torch.uint8).cpu().contiguous().numpy()


def _compute_like(vae: WanVAE, device: torch.device | str | None, dtype: torch.dtype | None) -> Tensor:
    """An empty tensor with the device and dtype of the computation."""
    weight = next(vae.parameters())
    return torch.empty(0, device=device or weight.device, dtype=dtype or weight.dtype)


def _calls(latents: Tensor, begun: bool, at_once: int) -> list[Tensor]:
    """The pieces of a push, one network call each; a video's first frame is always a call of its own."""
    calls = []
    if not begun:
        first, latents = latents.split((1, latents.shape[2] - 1), dim=2)
        calls.append(first)
    return [*calls, *latents.split(at_once if at_once >= TOGETHER else 1, dim=2)] if latents.shape[2] else calls


def _entering(x: Tensor, like: Tensor) -> Tensor:
    return x.to(like).contiguous(memory_format=memory_format(like.device))


def _require_shape(what: str, given: Tensor, channels: int) -> None:
    if given.ndim != 5 or given.shape[1] != channels or 0 in given.shape:
        raise PackForcingError(
            f"Got {what} of shape {list(given.shape)}; expected [B, {channels}, T, height, width], none of them 0."
        )


def _require_same_size(what: str, given: Tensor, before: Tensor | None) -> None:
    if before is None:
        return
    old, new = ([*x.shape[:1], *x.shape[3:]] for x in (before, given))
    if old != new:
        raise PackForcingError(
            f"Got {what} of [batch, height, width] {new} in a video that started with {old}; "
            "call reset() before another video."
        )

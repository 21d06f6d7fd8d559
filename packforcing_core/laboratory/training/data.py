"""Training data of the flow stages: latents of clips and their prompts, encoded once and stored in a folder.

A shard is a safetensors file: `latents` [n, 16, F, h, w] in model space and `low_res` [n, 16, blocks x g_t, 2 g_h, 2
g_w], the latents of the compressor's low-resolution branch, both float16; `context` [n, text_len, text_dim] bfloat16
where the text encoder is too large to run during training. The metadata hold the `prompts` as JSON and, for clips of
the toy world, their `facts`: the background, and the visible area in each block (`Facts`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...compressor.low_res import Encode, low_res_latents
from ...errors import PackForcingError
from ...geometry import pixel_frames
from ...source import at_rate, fitted
from ...vae.config import normalise
from ...vae.streaming import encode
from ...vae.wan_vae import WanVAE
from ...video.reader import probe, read_frames
from ..evaluation.little_world.prompt import describe
from ..evaluation.little_world.scene import Scene
from .clips import Worlds, areas_in_sight, draw_clips
from .precision import autocast, training_precision
from .randomness import step_generator
from .ranks import rank, share, turns
from .vae import encode_clip

SHARD_CLIPS = 64
ENCODED_TOGETHER = 8
"""Number of clips per VAE batch. On one CPU thread this takes 0.7 of the time of encoding them one by one."""
VIDEO_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm")


@dataclass(frozen=True)
class LatentBatch:
    """`latents` [B, 16, F, h, w] float32 in model space and text embeddings `context` [B, text_len, text_dim].

    `indices` are the samples' numbers in the global batch of all ranks. `low_res` [B, 16, blocks x g_t, 2 g_h, 2 g_w]
    are the latents of the compressor's low-resolution branch, block by block; None if the data has none.
    """

    latents: Tensor
    context: Tensor
    indices: Sequence[int]
    low_res: Tensor | None = None


class Facts(NamedTuple):
    """Properties of a toy world clip: its background, and the visible area in each block in square pixels (`clips`)."""

    background: str
    areas: tuple[float, ...]


@dataclass(frozen=True)
class ClipShape:
    """The shape of clips: `latent_frames` in blocks of `frames_per_block`, images of `width` x `height` pixels."""

    latent_frames: int
    frames_per_block: int
    width: int
    height: int

    @property
    def pixel_frames(self) -> int:
        return pixel_frames(self.latent_frames)

    def block_pieces(self, video: Tensor) -> Iterator[tuple[Tensor, torch.Size, bool]]:
        """Yields, for each block of a clip [B, 3, T, H, W], its pixel frames, the shape of its latents, and whether it
        is the first block.
        """
        shape = torch.Size((video.shape[0], 16, self.frames_per_block, self.height // 8, self.width // 8))
        ends = range(self.frames_per_block, self.latent_frames + 1, self.frames_per_block)
        start = 0
        for end in map(pixel_frames, ends):
            yield video[:, :, start:end], shape, start == 0
            start = end


def encoded_with_twins(video: Tensor, shape: ClipShape, encoder: Encode) -> tuple[Tensor, Tensor]:
    """Returns a clip's latents and the low-resolution latents of its blocks, both float16.

    The low-resolution latents are encoded from the clip's own frames: decoding the latents first would give nearly the
    same.
    """
    low_res = [low_res_latents(encoder, *piece) for piece in shape.block_pieces(video)]
    return encoder(video).half(), torch.cat(low_res, dim=2).half()


@torch.no_grad()
def encode_little_world(
    vae: WanVAE,
    folder: Path,
    clips: int,
    shape: ClipShape,
    seed: int,
    shard_clips: int = SHARD_CLIPS,
    worlds: Worlds | None = None,
) -> Iterator[Path]:
    """Writes shards of clips of the toy world and yields the path of each; existing shards are kept. The ranks share
    the work.

    Clip i of a shard is drawn from the mix `worlds` and depends only on (seed, shard, i).
    """
    folder.mkdir(parents=True, exist_ok=True)

    encoder = clip_encoder(vae)
    for shard in turns(-(-clips // shard_clips)):
        path = folder / f"{shard:05d}.safetensors"
        if not path.exists():
            count = min(shard_clips, clips - shard * shard_clips)
            pairs: list[tuple[Tensor, Tensor]] = []
            scenes: list[Scene] = []
            for first in range(0, count, ENCODED_TOGETHER):
                together = range(first, min(count, first + ENCODED_TOGETHER))
                drawn = draw_clips(seed, shard, together, shape.pixel_frames, worlds)
                pairs.append(encoded_with_twins(drawn.video, shape, encoder))
                scenes += drawn.scenes
            facts = [_facts(scene, shape) for scene in scenes]
            _write(path, pairs, [describe(scene) for scene in scenes], facts=facts)
        yield path


def clip_encoder(vae: WanVAE) -> Encode:
    """Returns a function that encodes whole clips [B, 3, T, H, W] in -1..1 with `vae`, in the precision
    for its device.
    """
    device = next(vae.parameters()).device

    def encoder(video: Tensor) -> Tensor:
        with autocast(device, training_precision(device)):
            return normalise(encode_clip(vae, video.to(device))[0]).float().cpu()

    return encoder


def _facts(scene: Scene, shape: ClipShape) -> Facts:
    blocks = shape.latent_frames // shape.frames_per_block
    areas = areas_in_sight(scene, shape.frames_per_block, blocks)
    return Facts(scene.background, tuple(round(area, 1) for area in areas))


@torch.no_grad()
def encode_videos(
    vae: WanVAE,
    videos: Path,
    folder: Path,
    shape: ClipShape,
    encode_text: Callable[[Sequence[str]], Sequence[Tensor]],
    fps: float = 16.0,
) -> Iterator[Path]:
    """Writes one shard for each video in `videos`, NAME.mp4 with its prompt in NAME.txt, and yields its path.

    The first `shape.pixel_frames` frames at `fps` are used, scaled to cover the size and centre-cropped. `encode_text`
    returns [1, text_len, text_dim] for each prompt. Existing shards are kept; the ranks share the videos. Raises
    PackForcingError if there are no videos, or if one has no prompt or is too short.
    """
    films = sorted(path for path in videos.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES)
    if not films:
        raise PackForcingError(f"{videos} has no videos ({', '.join(VIDEO_SUFFIXES)}).")
    own = [films[i] for i in turns(len(films)) if not (folder / f"{films[i].stem}.safetensors").exists()]
    prompts = [_prompt(film) for film in own]
    folder.mkdir(parents=True, exist_ok=True)
    contexts = encode_text(prompts) if own else ()
    for film, prompt, context in zip(own, prompts, contexts, strict=True):
        video = fitted(_first_frames(film, shape.pixel_frames, fps), shape.width, shape.height)
        path = folder / f"{film.stem}.safetensors"
        _write(path, [encoded_with_twins(video, shape, lambda video: encode(vae, video).cpu())], [prompt], context)
        yield path


def encode_unprompted(
    path: Path, encode_text: Callable[[Sequence[str]], Sequence[Tensor]], prompt: str = ""
) -> Iterator[Path]:
    """Writes the `context` [1, text_len, text_dim] of the unconditional pass of classifier-free guidance, for the empty
    or a negative prompt, to `path`, and yields the path. An existing file is kept.
    """
    if rank() == 0 and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {"context": encode_text([prompt])[0].cpu().bfloat16().contiguous()},
            f"{path}.part",
            {"prompt": prompt},
        )
        os.replace(f"{path}.part", path)
        yield path


def _prompt(film: Path) -> str:
    text = film.with_suffix(".txt")
    if not text.is_file() or not (prompt := text.read_text(encoding="utf-8").strip()):
        raise PackForcingError(f"{film.name} has no prompt; expected it in {text.name} beside the video.")
    return prompt


def _first_frames(film: Path, count: int, fps: float) -> np.ndarray:
    frames = list(islice(at_rate(read_frames(film), float(probe(film).fps), fps), count))
    if len(frames) < count:
        raise PackForcingError(
            f"{film.name} has {len(frames)} frames at {fps:g} frames per second; expected at least {count}. "
            "Leave it out, or train on fewer latent frames."
        )
    return np.stack(frames)


def _write(
    path: Path,
    pairs: Iterable[tuple[Tensor, Tensor]],
    prompts: Sequence[str],
    context: Tensor | None = None,
    facts: Sequence[Facts] = (),
) -> None:
    latents, low_res = (torch.cat(tensors).contiguous() for tensors in zip(*pairs, strict=True))
    tensors = {"latents": latents, "low_res": low_res}
    if context is not None:
        tensors["context"] = context.cpu().bfloat16().contiguous()
    metadata = {"prompts": json.dumps(list(prompts))}
    if facts:
        metadata["facts"] = json.dumps(facts)
    save_file(tensors, f"{path}.part", metadata)
    os.replace(f"{path}.part", path)


class LatentFolder:
    """The shards of a folder, read clip by clip. Batches are drawn from (seed, step); every rank reads its share.

    `encode` encodes prompts if the shards have no contexts. Raises PackForcingError if the folder has no shards.
    """

    def __init__(self, folder: Path, encode: Callable[[Sequence[str]], Tensor] | None, batch: int, seed: int):
        self.encode, self.batch, self.seed = encode, batch, seed
        self._rows: list[tuple[Path, int, str]] = []
        self.facts: list[Facts | None] = []
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            prompts = json.loads(metadata["prompts"])
            self._rows += [(path, row, prompt) for row, prompt in enumerate(prompts)]
            found = json.loads(metadata.get("facts", "null")) or [None] * len(prompts)
            self.facts += [Facts(own[0], tuple(own[1])) if own else None for own in found]
        if not self._rows:
            raise PackForcingError(f"{folder} has no latents (*.safetensors); run `packforcing train latents` first.")

    def __len__(self) -> int:
        return len(self._rows)

    def __call__(self, step: int) -> LatentBatch:
        indices = share(self.batch)
        chosen = torch.randint(len(self), (self.batch,), generator=step_generator(self.seed, "batch", step))
        rows = [int(chosen[i]) for i in indices]
        clips = [self.clip(row) for row in rows]
        low_res = _stacked(clips, "low_res") if all("low_res" in clip for clip in clips) else None
        return LatentBatch(_stacked(clips, "latents"), self.contexts(rows), indices, low_res)

    def contexts(self, rows: Sequence[int]) -> Tensor:
        """Returns the text embeddings [B, text_len, text_dim] of the clips `rows`, numbered over all shards."""
        if self.encode is None:
            return _stacked([self.clip(row) for row in rows], "context")
        return self.encode([self._rows[row][2] for row in rows])

    def clip(self, row: int) -> dict[str, Tensor]:
        """Returns the tensors of clip `row`, numbered over all shards, as float32."""
        path, row, _ = self._rows[row]
        with safe_open(path, "pt") as file:
            return {name: file.get_slice(name)[row].float() for name in file.keys()}  # noqa: SIM118


def _stacked(clips: Sequence[dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([clip[name] for clip in clips])

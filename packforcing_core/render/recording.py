"""A recorded rollout: each finished block is saved, and saved blocks are not denoised again.

There is one way to resume, after a killed process as after a full GPU. The blocks on disk are read. Those before the
first missing one are committed again, with their recorded selection and compressed tokens, which is exact. Then the
missing blocks are sampled.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Generator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from .. import __version__
from ..cache.bank import bits_of
from ..cache.partitions import Partitions
from ..folder.content import Content, name_of
from ..folder.disk import Disk
from ..folder.folder import RenderFolder
from ..folder.manifest import Manifest, Setting, Take
from ..model.causal import CausalWan
from ..recipe.recipe import Recipe
from ..sampler.denoising import BlockDone, Event
from ..sampler.rollout import Compression, rollout
from ..vae.receptive import frames_looked_back, warm_up
from ..vae.streaming import StreamingDecoder
from ..vae.tiny import TinyDecoder
from .parts import build_cache


@dataclass(frozen=True)
class Replayed:
    """A finished block that is in the video already was committed again, on the way to the first missing one."""

    block: int


def wanted_manifest(
    recipe: Recipe, identity: Mapping[str, Setting], content: Content, device: torch.device
) -> Manifest:
    """The manifest of `recipe` with this content.

    `identity` holds what the recipe does not know: the dtype, and fingerprints of model, VAE and compressor.
    """
    g, denoising, start = recipe.geometry, recipe.denoising, recipe.start
    first = denoising.first_block
    settings: dict[str, Setting] = {
        **{name: getattr(g, name) for name in ("width", "height", "fps", "frames_per_block")},
        "policy": recipe.policy.name,
        **{f"policy {knob.name}": getattr(recipe.policy, knob.name) for knob in recipe.policy.knobs()},
        "timesteps": list(denoising.schedule.timesteps),
        "sigmas": list(denoising.schedule.sigmas),
        "first block's timesteps": list(first.timesteps) if first else None,
        "context_noise": denoising.context_noise,
        "rolling": denoising.rolling,
        "start": start.kind,
        "start in latent frames": 0 if start.latents is None else start.latents.shape[2],
        "denoise": start.denoise,
        **identity,
    }
    storage = "policy bank_storage"
    if storage in settings:  # Where the bank is stored does not change the video; its number of bits does.
        bits = bits_of(str(settings[storage]))
        settings[storage] = f"{bits} bits" if bits else "full"
    versions = {
        "packforcing": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(device),
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "any",
    }
    return Manifest(settings, g.blocks, (Take(0, recipe.seed, name_of(content.script), content.words),), versions)


def _processor(device: torch.device) -> str:
    return f"cpu {torch.backends.cpu.get_cpu_capability()}" if device.type == "cpu" else device.type


class Recording:
    """The blocks of a render: read for its rollouts, and saved when they are finished."""

    def __init__(self, recipe: Recipe, folder: RenderFolder, disk: Disk):
        self._folder, self._disk = folder, disk
        self._given = {done.block: done for done in recipe.given}
        self._since = time.monotonic()

    def __call__(self, block: int) -> BlockDone | None:
        """The block if it is finished, else None."""
        blocks = self._folder.blocks
        return blocks.load(block) if blocks.has(block) else self._given.get(block)

    def keep(self, done: BlockDone) -> None:
        """Saves a block unless it is on disk."""
        if self._folder.blocks.has(done.block):
            return
        seconds, self._since = time.monotonic() - self._since, time.monotonic()
        line = {"seconds": round(seconds, 4), **memory(), "selected": _selected(done)}
        kept = replace(done, video=None)
        self._folder.blocks.expect(kept)
        self._disk.put(partial(self._write, kept, line))

    def _write(self, done: BlockDone, line: Mapping[str, object]) -> None:
        self._folder.blocks.save(done)
        take = self._folder.manifest.take_of(done.block)
        self._folder.telemetry.append("block", block=done.block, take=take, **line)


def latents_before(folder: RenderFolder, block: int, frames: int) -> list[Tensor]:
    """Latents of the finished blocks before `block`, enough for `frames` latent frames, or all there are of its
    scene.
    """
    per_block = folder.blocks.shape[2]
    first = max(folder.scene_start(block), block - -(-frames // per_block))
    return [folder.blocks.load(b).latents for b in range(first, block)]


def recorded_events(
    model: CausalWan,
    recipe: Recipe,
    folder: RenderFolder,
    compression: Compression | None,
    *,
    first: int = 0,
    decoded: bool = True,
    frugal: bool = False,
) -> Generator[Event | Replayed, None, None]:
    """Events of the blocks from `first` on. Blocks in the folder are not denoised again; new ones are saved there.

    If `compression` decodes and `decoded` is set, blocks from `first` on carry their video. `frugal` keeps the bank in
    system RAM.

    Raises PackForcingError if the folder cannot be read or written, or if the rollout does. What is in the folder stays
    valid.
    """
    manifest, missing = folder.manifest, folder.missing_blocks()
    end = missing[-1] + 1 if missing else 0
    if missing:
        with Disk() as disk:
            recording = Recording(recipe, folder, disk)
            decoded_from = _decoded_from(recipe, folder, missing, first if decoded else manifest.blocks)
            if compression and isinstance(
                compression.decoder, StreamingDecoder | TinyDecoder
            ):  # Other decoders keep no state.
                frames = frames_looked_back(compression.decoder.vae)
                with compression.stream.beside():  # The stream on which it decodes later must own its memory.
                    warm_up(compression.decoder, latents_before(folder, decoded_from, frames))
            disk.put(partial(folder.telemetry.append, "started", known=manifest.blocks - len(missing), frugal=frugal))
            cache = build_cache(model, recipe, bank_on_host(recipe.partitions) if frugal else recipe.partitions)
            for take, last in manifest.pieces():
                if cache.next_block >= min(last, end):
                    continue
                disk.flush()  # Blocks of the previous piece may have to be committed again.
                script, noise = folder.script(take), replace(recipe, seed=manifest.takes[take].seed).noise(take)
                stop = min(last, end)
                for event in rollout(
                    model,
                    script,
                    cache,
                    noise,
                    recipe.denoising,
                    end,
                    recording,
                    compression,
                    stop=stop,
                    decoded_from=decoded_from,
                ):
                    if isinstance(event, BlockDone):
                        recording.keep(event)
                        if event.block < first:
                            yield Replayed(event.block)
                            continue
                    yield event
    yield from map(folder.blocks.load, range(max(first, end), manifest.blocks))


def _decoded_from(recipe: Recipe, folder: RenderFolder, missing: list[int], first: int) -> int:
    """The first block that the rollout has to decode, for the video or for missing compressed tokens."""
    for block in range(min(first, missing[0]) if recipe.partitions.bank else 0):
        in_scene = (block - folder.scene_start(block)) * recipe.geometry.frames_per_block
        if in_scene >= recipe.partitions.sink_frames and not folder.blocks.has_tokens(block):
            return block
    return min(first, missing[0])


def memory() -> dict[str, float]:
    """Memory used by this process in MB, if the system reports it."""
    used: dict[str, float] = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[1])
        used["rss_mb"] = round(pages * 4096 / 1e6, 1)
    if torch.cuda.is_available():
        used["gpu_mb"] = round(torch.cuda.memory_allocated() / 1e6, 1)
    return used


def _selected(done: BlockDone) -> list:
    """What each layer selected: block indices, or the number of tokens for policies that select tokens."""
    return [len(choice) if isinstance(choice, array) else list(choice) for choice in done.seen]


def bank_on_host(partitions: Partitions) -> Partitions:
    """The same plan with the bank in system RAM."""
    if partitions.bank is None:
        return partitions
    storage = partitions.bank.bank_storage.replace("vram", "ram")
    return replace(partitions, bank=replace(partitions.bank, bank_storage=storage))

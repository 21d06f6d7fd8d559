"""A render that survives: the stages of `render`, with everything that they make kept in the render's folder.

    folder = open_render(root, name, mode, wanted_manifest(recipe, identity, text, device), text, block_shape)
    source = partial(sampled_events, model, recipe, folder, make_twins)
    for event in filmed_render(folder, recipe, job, source):
        ...  # StepDone, BlockDone, FilmedBlock, Note

There is one way on after everything that can go wrong, a killed process and a full GPU alike: what is on disk is
looked at, the nearest saved state is restored, and what lies between it and the first missing piece is replayed.
"""

from __future__ import annotations

import json
import time
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import __version__
from .cache.cache import KVCache
from .cache.config import NO_PART
from .cache.partitions import Partitions
from .errors import PackForcingError
from .folder.fingerprint import fingerprint
from .folder.folder import RenderFolder, prompt_take
from .folder.manifest import Manifest, Setting
from .model.causal import CausalWan
from .render import Recipe, build_cache
from .sampler.rollout import BlockDone, Event, Twins
from .sampler.scripted import scripted_rollout
from .text.script import Script

DEFAULT_SNAPSHOT_BLOCKS = 16
T = TypeVar("T")


@dataclass(frozen=True)
class Replayed:
    """A finished block that the film has already was committed again, on the way to the first missing one."""

    block: int


def wanted_manifest(
    recipe: Recipe, identity: Mapping[str, Setting], text: Tensor | Script, device: torch.device
) -> Manifest:
    """The manifest of `recipe` under the text embeddings `text`.

    `identity` are the fingerprints of model, VAE and compressor and the dtype: what the recipe does not know.
    """
    g, denoising = recipe.geometry, recipe.denoising
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
        **_start_settings(recipe),
        **identity,
    }
    storage = "policy bank_storage"
    if storage in settings:  # Where the bank lies does not matter, in how many bits it does.
        settings[storage] = _precision(str(settings[storage]))
    # As in renders from before there was a choice.
    if settings["policy kv_int8"] == NO_PART:
        del settings["policy kv_int8"]
    if settings.get("policy sink_gap") == 0:
        del settings["policy sink_gap"]
    versions = {
        "packforcing": __version__,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": str(torch.get_num_threads()) if device.type == "cpu" else "any",
    }
    return Manifest(settings, g.blocks, (prompt_take(recipe.seed, text),), versions)


def _precision(storage: str) -> str:
    return "8 bits" if storage.endswith("int8") else "full"


def _start_settings(recipe: Recipe) -> dict[str, Setting]:
    start = recipe.start
    latents = start.given if start.given is not None else start.repainted
    if latents is None:
        return {}
    return {
        "start": fingerprint(latents, None),
        "start is left out": start.left_out,
        "start is repainted": start.strength if start.repainted is not None else None,
    }


def known_events(folder: RenderFolder, first: int, end: int) -> Iterator[BlockDone]:
    """Finished blocks from the folder."""
    for block in range(first, end):
        yield folder.blocks.load(block, folder.manifest.take_of(block))


def sampled_events(
    model: CausalWan,
    recipe: Recipe,
    folder: RenderFolder,
    make_twins: Callable[[], Twins | None],
    snapshot_blocks: int = DEFAULT_SNAPSHOT_BLOCKS,
    *,
    first: int = 0,
    frugal: bool = False,
) -> Iterator[Event | Replayed]:
    """Events of the blocks from `first` on; those in the folder are not denoised again, new ones are put there.

    The state is saved every `snapshot_blocks`; 0 never does, then going on replays every commit. `frugal` keeps the
    bank in host memory. Raises PackForcingError when the folder cannot be read or written, and for what the rollout
    refuses; what is in the folder stands.
    """
    manifest = folder.manifest
    for done in recipe.given[folder.known_blocks :]:
        folder.blocks.save(done, manifest.take_of(done.block))
    known = folder.known_blocks
    if known >= manifest.blocks:
        yield from known_events(folder, first, manifest.blocks)
        return
    cache, twins = _restored_state(model, recipe, folder, make_twins, known, frugal)
    start = cache.next_block
    folder.telemetry.append("started", known=known, restored=start, frugal=frugal)
    yield from known_events(folder, first, start)

    load = lru_cache(maxsize=1)(lambda block: folder.blocks.load(block, manifest.take_of(block)))
    blocks = _Lazy(known, load)
    keep = _Keeper(folder, recipe, cache, twins, snapshot_blocks)
    for take, end in manifest.pieces():
        if cache.next_block >= end:
            continue
        events = scripted_rollout(
            model,
            folder.script(take),
            cache,
            recipe.noise(manifest.takes[take].seed, take),
            recipe.denoising,
            manifest.blocks,
            lambda block: load(block).latents,
            blocks,
            twins,
            end,
        )
        for event in events:
            if isinstance(event, BlockDone):
                keep(event, take)
                if event.block < first:
                    yield Replayed(event.block)
                    continue
            yield event


class _Lazy(Sequence[T]):
    """Items that are read when they are asked for."""

    def __init__(self, length: int, read: Callable[[int], T]):
        self._length, self._read = length, read

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> T:
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._read(index % self._length)


class _Keeper:
    """Puts each block, and every so often the state, into the folder before anybody else hears of the block."""

    def __init__(self, folder: RenderFolder, recipe: Recipe, cache: KVCache, twins: Twins | None, every: int):
        self._folder, self._recipe, self._cache, self._twins, self._every = folder, recipe, cache, twins, every
        self._since = time.monotonic()

    def __call__(self, done: BlockDone, take: int) -> None:
        following, folder = done.block + 1, self._folder
        if not done.reused:
            folder.blocks.save(done, take)
            folder.telemetry.append(
                "block",
                block=done.block,
                take=take,
                seconds=round(time.monotonic() - self._since, 4),
                **memory(),
                selected=_selected(done),
            )
        due = self._every and following % self._every == 0 and following < folder.manifest.blocks
        if due and not folder.snapshots.has(following, take):
            tensors, plain = _state(self._recipe, self._cache, self._twins)
            # A state that is lost already would only fail again; from an older one a replay may succeed.
            if all(tensor.isfinite().all() for tensor in tensors.values() if tensor.is_floating_point()):
                folder.snapshots.save(following, take, tensors, plain)
        self._since = time.monotonic()


def memory() -> dict[str, float]:
    """What this process holds, in MB, where the system tells."""
    used: dict[str, float] = {}
    statm = Path("/proc/self/statm")
    if statm.exists():
        pages = int(statm.read_text(encoding="ascii").split()[1])
        used["rss_mb"] = round(pages * 4096 / 1e6, 1)
    if torch.cuda.is_available():
        used["gpu_mb"] = round(torch.cuda.memory_allocated() / 1e6, 1)
    return used


def _selected(done: BlockDone) -> list:
    """What each layer selected: blocks, or how many tokens where tokens are chosen."""
    return [len(choice) if isinstance(choice, array) else list(choice) for choice in done.selection]


def _state(recipe: Recipe, cache: KVCache, twins: Twins | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, plain = cache.snapshot()
    if twins:
        tensors |= twins.snapshot()
    return tensors, {"cache": plain, "plan": _plan(cache.partitions), "latent_frames": recipe.geometry.latent_frames}


def _plan(partitions: Partitions) -> dict[str, Any]:
    """A plan as JSON holds it, without where the bank lies."""
    plan = asdict(partitions)
    if plan["bank"]:
        plan["bank"]["storage"] = _precision(plan["bank"]["storage"])
    if not plan["int8"]:
        del plan["int8"]
    if not plan["sink_gap"]:
        del plan["sink_gap"]
    return json.loads(json.dumps(plan))


def _restored_state(
    model: CausalWan,
    recipe: Recipe,
    folder: RenderFolder,
    make_twins: Callable[[], Twins | None],
    known: int,
    frugal: bool,
) -> tuple[KVCache, Twins | None]:
    """The newest saved state that fits, or an empty one: from there every commit is replayed, which is as exact."""
    partitions = bank_on_host(recipe.partitions) if frugal else recipe.partitions
    for block, tensors, plain in folder.snapshots.readable(folder.manifest, known):
        cache, twins = build_cache(model, recipe, partitions), make_twins()
        try:
            _restore(recipe, cache, twins, tensors, plain)
        except PackForcingError as error:
            folder.telemetry.append("snapshot refused", block=block, reason=str(error))
            del cache, twins  # Before the next attempt takes as much memory again.
            continue
        if cache.next_block == block:
            return cache, twins
    return build_cache(model, recipe, partitions), make_twins()


def _restore(recipe: Recipe, cache: KVCache, twins: Twins | None, tensors: Mapping[str, Tensor], plain: Any) -> None:
    g = recipe.geometry
    if not isinstance(plain, dict) or type(plain.get("latent_frames")) is not int:
        raise PackForcingError("It says nothing of its plan.")
    clip = min(max(plain["latent_frames"], 1), g.latent_frames)
    if plain.get("plan") != _plan(recipe.unlimited_partitions.limited_to(clip)):
        raise PackForcingError("It is of another plan.")
    cache.restore(tensors, plain.get("cache", {}))
    if twins:
        try:
            twins.restore(tensors, cache.device)
        except ValueError as error:
            raise PackForcingError(f"It is damaged: {error}.") from error


def bank_on_host(partitions: Partitions) -> Partitions:
    """The same plan with its bank in host memory."""
    if partitions.bank is None:
        return partitions
    storage = "host_int8" if partitions.bank.storage.endswith("int8") else "host"
    return replace(partitions, bank=replace(partitions.bank, storage=storage))

"""The rollout under prompts that change: stretch by stretch on one cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from torch import Tensor

from ..cache.cache import KVCache
from ..errors import PackForcingError
from ..model.causal import CausalWan
from ..text.script import Script
from .noise import NoiseSource
from .rolling import rolling_rollout
from .rollout import BlockDone, Denoising, Event, Twins, recache, rollout

T = TypeVar("T")


def scripted_rollout(
    model: CausalWan,
    script: Script,
    cache: KVCache,
    noise: NoiseSource,
    denoising: Denoising,
    blocks: int,
    past: Callable[[int], Tensor],
    known: Sequence[BlockDone] = (),
    twins: Twins | None = None,
    stop: int | None = None,
) -> Iterator[Event]:
    """The rollout of `denoising`'s kind from where the cache stands, with each block's text taken from `script`.

    Each text is encoded once for the blocks that have it. `past(block)` gives the latents of an earlier block
    [1, 16, frames_per_block, h, w], for prompts that commit again what is in view. Raises as `rollout` does.
    """
    require_followable(script, denoising)
    latents = Derived(known, lambda done: done.latents)
    selections = Derived(known, lambda done: done.selection)
    for stretch in script.stretches(cache.next_block, blocks if stop is None else stop):
        text = model.encode_text(stretch.context)
        if denoising.rolling:
            yield from rolling_rollout(model, text, cache, noise, denoising, blocks, known, twins, stretch.end)
            continue
        if stretch.recache:
            recache(model, text, cache, {b: past(b) for b in cache.blocks_in_view()}, denoising.context_noise)
        yield from rollout(model, text, cache, noise, denoising, blocks, latents, selections, twins, stretch.end)


def require_followable(script: Script, denoising: Denoising) -> None:
    """PackForcingError for prompts that change where several blocks are denoised together."""
    if denoising.rolling and len(script.cues) > 1:
        raise PackForcingError(
            f"Got {len(script.cues)} prompts over time for a rolling rollout, whose blocks are denoised together under "
            "one prompt. Give one prompt, or choose a preset that samples block by block."
        )


class Derived(Sequence[T]):
    """What `derive` makes of each item of a sequence, when it is asked for."""

    def __init__(self, items: Sequence[BlockDone], derive: Callable[[BlockDone], T]):
        self._items, self._derive = items, derive

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> T:
        return self._derive(self._items[index])

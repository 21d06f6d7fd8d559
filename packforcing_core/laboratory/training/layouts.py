"""Trains the compressor with the cache layouts of long videos, assembled from short clips.

In a long video the sink shows the beginning, the returning object was last visible somewhere in between, unrelated
blocks lie before and after that, and a layer has to select. No clip of 5 s has this. But a cache only holds blocks of
clean latents in order. So the blocks of a short clip are arranged in a new order, with blocks of an empty video between
them:

    gap        [sink: blank | blank x before | sighting | blank x behind | the newest block, blank]
    departure  [sink: blank | blank x before | sighting | the newest block, in which the object leaves]

The next block is trained to have the same flow as with the full history of the original short clip. After a gap the
object returns, or a blank block is the target instead; after a departure nothing returns yet. A compressor trained on
returns alone would bring objects back too early.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...cache.config import PackForcing
from ...errors import PackForcingError
from ...miniature.world import BACKGROUNDS
from ...vae.wan_vae import WanVAE
from ..evaluation.little_world.draw import draw
from ..evaluation.little_world.scene import Scene
from .clips import returning_block
from .compressor import CompressorStage
from .data import ClipShape, LatentBatch, LatentFolder, clip_encoder, encoded_with_twins
from .flow import autocast
from .functional_cache import FunctionalView, teacher_forced_views
from .loop import Update
from .randomness import SampleNoise, step_generator
from .ranks import share


@dataclass(frozen=True)
class Layouts:
    """The distribution of layouts. A layout's policy is drawn from `memories`; its sink is filled with blank blocks."""

    memories: Sequence[PackForcing]
    ordinary: float = 0.25
    """Fraction of steps on clips in their own order."""
    departures: float = 0.25
    """Fraction of steps in which the object leaves. All other steps are gaps."""
    selection_weight: float = 0.01
    """Weight of the selection loss in gaps. With 0 no loss acts on the selection."""
    most_before: int = 2
    most_behind: int = 10
    """Maximum numbers of blank blocks before and behind a sighting. In a departure both lie before it."""


@dataclass(frozen=True)
class Layout:
    """The layout of one step: a clip's `sighting` blocks and its `newest` block, with `front` blank blocks (including
    the sink's) before the sighting and `behind` blank blocks after it. The target is the clip's block after `newest`.
    """

    memory: PackForcing
    front: int
    sighting: range
    behind: int
    newest: int

    def blocks(self) -> list[int | None]:
        """Returns the clip's block at each position; None for a blank block."""
        return [*[None] * self.front, *self.sighting, *[None] * self.behind, self.newest]

    @property
    def shown(self) -> range:
        """Positions of the sighting in the layout."""
        return range(self.front, self.front + len(self.sighting))


@dataclass(frozen=True)
class Film:
    """Latents [16, F, h, w] and low-resolution latents [16, blocks x g_t, 2 g_h, 2 g_w] of a clip or of
    an empty video.
    """

    latents: Tensor
    low_res: Tensor

    def blocks(self, frames: int) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        latents = self.latents.split(frames, dim=1)
        return latents, self.low_res.chunk(len(latents), dim=1)


BLANK_BLOCKS = 3
"""Blocks of an empty video: the first, which begins with a single frame; a second; and one that stands for all later
ones.
"""


@torch.no_grad()
def blank_films(vae: WanVAE, shape: ClipShape) -> dict[str, Film]:
    """Returns an empty video for every background of the toy world."""
    blank = replace(shape, latent_frames=BLANK_BLOCKS * shape.frames_per_block)
    names = tuple(BACKGROUNDS)
    drawn = [torch.from_numpy(draw(Scene("bounce", name), blank.pixel_frames)) for name in names]
    video = torch.stack(drawn).permute(0, 4, 1, 2, 3).float().div_(127.5).sub_(1)
    latents, low_res = encoded_with_twins(video, blank, clip_encoder(vae))
    return {name: Film(own.float(), low.float()) for name, own, low in zip(names, latents, low_res, strict=True)}


class HiddenClips:
    """The clips of a folder in which an object returns after a blank block, grouped by the block in which it returns.

    Raises PackForcingError if there are none.
    """

    def __init__(self, folder: LatentFolder, blanks: Mapping[str, Film], frames_per_block: int):
        self.folder, self.blanks, self.frames = folder, blanks, frames_per_block
        self.rows: dict[int, list[int]] = {}
        self._backgrounds: dict[int, str] = {}
        for row, facts in enumerate(folder.facts):
            if facts is None:
                continue
            self._backgrounds[row] = facts.background
            block = returning_block(facts.areas)
            # Before it come a sighting, the block in which the object leaves, and the blank block.
            if block is not None and block >= 3:
                self.rows.setdefault(block, []).append(row)
        if not self.rows:
            raise PackForcingError(
                "The folder has no clips in which an object returns after a blank block, and the compressor is trained "
                'on such clips. Encode some: `packforcing train latents --worlds "hidden=3,unnamed=1"`.'
            )

    def __len__(self) -> int:
        return sum(map(len, self.rows.values()))

    def draw(self, generator: torch.Generator) -> tuple[int, list[int]]:
        """Draws a returning block, weighted by its number of clips, and a batch of rows of those clips."""
        counts = torch.tensor([float(len(rows)) for rows in self.rows.values()])
        block = list(self.rows)[int(torch.multinomial(counts, 1, generator=generator))]
        rows = self.rows[block]
        return block, [rows[int(i)] for i in torch.randint(len(rows), (self.folder.batch,), generator=generator)]

    def films(self, row: int) -> tuple[Film, Film]:
        """Returns a clip, and the empty video of its background."""
        clip = self.folder.clip(row)
        return Film(clip["latents"], clip["low_res"]), self.blanks[self._backgrounds[row]]

    def laid_out(self, clip: Film, blank: Film, blocks: Sequence[int | None]) -> Film:
        """Arranges the clip's blocks in the order `blocks`, with blank blocks at None."""
        (own, own_low), (empty, empty_low) = clip.blocks(self.frames), blank.blocks(self.frames)
        latents, low_res = [], []
        for place, block in enumerate(blocks):
            # The VAE encodes a video's first block differently; later blank blocks are all alike.
            blank_block = min(place, BLANK_BLOCKS - 1)
            latents.append(empty[blank_block] if block is None else own[block])
            low_res.append(empty_low[blank_block] if block is None else own_low[block])
        return Film(torch.cat(latents, dim=1), torch.cat(low_res, dim=1))


def selection_loss(view: FunctionalView, right: range) -> tuple[Tensor, Tensor]:
    """Returns the selection loss and the miss rate of the blocks `right` in the bank of `view`.

    The loss is the cross-entropy of a softmax over each layer's affinities, divided by their standard deviation, with
    any of `right` as the correct class; the mean over clips and layers. The miss rate is the fraction of clips and
    layers in which none of `right` is among the k highest affinities, where k is the number of blocks selected by
    affinity.

    The paper's compressor gets its gradient through the attention to the selected blocks only, and none from the blocks
    that were not selected.
    """
    wanted = [index for index, block in enumerate(view.twins) if block in right]
    places = len(view.window.mid_positions)
    if view.cache.compressed[0].selector == "mean+newest":
        places -= places // 2
    losses, missed = [], []
    for affinities in map(view.affinities, view.mean_queries):
        spread = affinities.detach().std(dim=1, correction=0, keepdim=True).clamp_min(1e-12)
        logits = affinities / spread
        losses.append((logits.logsumexp(dim=1) - logits[:, wanted].logsumexp(dim=1)).mean())
        ranks = affinities.detach().argsort(dim=1, descending=True).argsort(dim=1)
        missed.append((ranks[:, wanted].amin(dim=1) >= places).float().mean())
    return torch.stack(losses).mean(), torch.stack(missed).mean()


@dataclass
class LayoutStage(CompressorStage):
    """Trains the compressor, with the model frozen, on the clips `hidden` in `layouts`. A fraction of the steps uses
    clips in their own order, to keep what was learnt from them.

    All clips of a step have the same layout. One pass evaluates several noisy blocks. A gap has three: the object's
    return at two noise levels, and a blank block in its place.
    """

    layouts: Layouts = field(kw_only=True)
    hidden: HiddenClips = field(kw_only=True)
    returns: int = field(default=2, kw_only=True)

    def step(self, number: int) -> Update:
        generator = step_generator(self.seed, "layout", number)
        kind = float(torch.rand((), generator=generator))
        if kind < self.layouts.ordinary:
            memory = self.memories[int(torch.randint(len(self.memories), (), generator=generator))]
            return self.ordinary(number, memory)
        departs = kind < self.layouts.ordinary + self.layouts.departures
        block, rows = self.hidden.draw(generator)
        return self.edited(number, self.layout(departs, block, generator), rows, departs)

    def layout(self, departs: bool, block: int, generator: torch.Generator) -> Layout:
        """Draws the layout for clips whose object returns in `block`."""

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        memories, most_behind = self.layouts.memories, self.layouts.most_behind
        memory = memories[integer(len(memories))]
        sink = memory.partitions(self.frames_per_block).sink_frames // self.frames_per_block
        before, behind = integer(self.layouts.most_before + 1), integer(most_behind + 1)
        if departs:
            return Layout(memory, sink + before + behind, range(block - 2), 0, block - 2)
        # A video's first block is encoded differently: with blocks in front of it, it may be left out.
        skipped = int(sink + before > 0 and integer(2) == 0)
        return Layout(memory, sink + before, range(skipped, block - 1), behind, block - 1)

    def edited(self, number: int, layout: Layout, rows: Sequence[int], departs: bool) -> Update:
        """Returns the update from the laid-out clips. `rows` are those of all ranks."""
        indices, hidden = share(len(rows)), self.hidden
        random, device = SampleNoise(self.seed, number, indices), self.model.device
        films = [hidden.films(rows[i]) for i in indices]
        context = hidden.folder.contexts([rows[i] for i in indices])
        orders = layout.blocks(), range(layout.newest + 1)
        long, short = (
            self._stacked([hidden.laid_out(clip, blank, order) for clip, blank in films], context, indices)
            for order in orders
        )
        after = layout.newest + 1
        came = torch.stack([clip.blocks(self.frames_per_block)[0][after] for clip, _ in films])
        stayed = torch.stack([blank.blocks(self.frames_per_block)[0][-1] for _, blank in films])
        copies = [came] * self.returns if departs else [*[came] * self.returns, stayed]
        x0 = torch.cat(copies, dim=2).to(device)
        with autocast(device, self.precision):
            with torch.no_grad():
                text = self.model.encode_text(context)
                targets = teacher_forced_views(self.model, text, self._cache(self.target), short.latents.to(device))
            student = self.views(layout.memory, text, long)[-1]
            error, figures = self.error(x0, text, [targets[-1]] * len(copies), [student] * len(copies), random)
        kind = "departure" if departs else "gap"
        figures = {**figures, f"relative_error/{kind}": figures["relative_error"]}
        if self.layouts.selection_weight and student.mean_queries and not departs:
            loss, missed = selection_loss(student, layout.shown)
            error, figures = error + self.layouts.selection_weight * loss, {**figures, "missed": missed.item()}
        return Update("compressor", error, figures)

    def _stacked(self, films: Sequence[Film], context: Tensor, indices: Sequence[int]) -> LatentBatch:
        """Stacks `films` into a batch and appends a block of zeros. That block is never committed; the view of it is
        what the caller needs.
        """
        latents, low_res = (torch.stack(own) for own in zip(*((f.latents, f.low_res) for f in films), strict=True))
        times = low_res.shape[2] * self.frames_per_block // latents.shape[2]
        pairs = (latents, self.frames_per_block), (low_res, times)
        latents, low_res = (torch.cat((x, torch.zeros_like(x[:, :, :count])), dim=2) for x, count in pairs)
        return LatentBatch(latents, context, indices, low_res)

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
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ...cache.config import PackForcing
from ...cache.select import EQUAL_LENGTHS, WITH_NEWEST
from ...errors import PackForcingError
from ...miniature.world import BACKGROUNDS
from ...vae.wan_vae import WanVAE
from ..evaluation.little_world.draw import draw
from ..evaluation.little_world.scene import Scene
from .clips import returning_block
from .compressor import CompressorStage, TwinsStage, compressed_views
from .data import ClipShape, LatentBatch, LatentFolder, clip_encoder, encoded_with_twins
from .flow import autocast, flow_loss, noised
from .functional_cache import FunctionalView, SideBySide, teacher_forced_views
from .loop import Update
from .randomness import SampleNoise, step_generator
from .ranks import share

Kind = Literal["ordinary", "departure", "gap"]


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

    def kind(self, generator: torch.Generator) -> Kind:
        """Draws the kind of a step."""
        drawn = float(torch.rand((), generator=generator))
        if drawn < self.ordinary:
            return "ordinary"
        return "departure" if drawn < self.ordinary + self.departures else "gap"

    def draw(self, kind: Kind, block: int, frames_per_block: int, generator: torch.Generator) -> Layout:
        """Draws the layout of a gap or a departure for clips whose object returns in `block`."""

        def integer(high: int) -> int:
            return int(torch.randint(high, (), generator=generator))

        memory = self.memories[integer(len(self.memories))]
        sink = memory.partitions(frames_per_block).sink_frames // frames_per_block
        before, behind = integer(self.most_before + 1), integer(self.most_behind + 1)
        if kind == "departure":
            return Layout(memory, sink + before + behind, range(block - 2), 0, block - 2)
        # A video's first block is encoded differently: with blocks in front of it, it may be left out.
        skipped = int(sink + before > 0 and integer(2) == 0)
        return Layout(memory, sink + before, range(skipped, block - 1), behind, block - 1)


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

    def draw_layout(self, layouts: Layouts, kind: Kind, generator: torch.Generator) -> tuple[Layout, list[int]]:
        """Draws a layout of a gap or a departure, and a batch of rows of clips for it."""
        block, rows = self.draw(generator)
        return layouts.draw(kind, block, self.frames, generator), rows

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

    def arranged(self, layout: Layout, rows: Sequence[int]) -> Arranged:
        """Returns this rank's share of the clips `rows`, those of all ranks, in `layout`."""
        indices = share(len(rows))
        films = [self.films(rows[i]) for i in indices]
        context = self.folder.contexts([rows[i] for i in indices])
        long, short = (
            self._stacked([self.laid_out(clip, blank, order) for clip, blank in films], context, indices)
            for order in (layout.blocks(), range(layout.newest + 1))
        )
        came = torch.stack([clip.blocks(self.frames)[0][layout.newest + 1] for clip, _ in films])
        stayed = torch.stack([blank.blocks(self.frames)[0][-1] for _, blank in films])
        return Arranged(long, short, came, stayed)

    def _stacked(self, films: Sequence[Film], context: Tensor, indices: Sequence[int]) -> LatentBatch:
        """Stacks `films` into a batch and appends a block of zeros. That block is never committed; the view of it is
        what the caller needs.
        """
        latents, low_res = (torch.stack(own) for own in zip(*((f.latents, f.low_res) for f in films), strict=True))
        times = low_res.shape[2] * self.frames // latents.shape[2]
        pairs = (latents, self.frames), (low_res, times)
        latents, low_res = (torch.cat((x, torch.zeros_like(x[:, :, :count])), dim=2) for x, count in pairs)
        return LatentBatch(latents, context, indices, low_res)


class Arranged(NamedTuple):
    """Clips arranged for one step: in the `long` layout, and their own blocks up to the newest alone (`short`); the
    block that `came` next [B, 16, frames, h, w], and a blank block that `stayed` in its place.
    """

    long: LatentBatch
    short: LatentBatch
    came: Tensor
    stayed: Tensor


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
    places, selector = len(view.window.mid_positions), view.cache.compressed[0].selector
    if selector in WITH_NEWEST:
        places -= places // 2
    losses, missed = [], []
    for layer in view.mean_queries:
        affinities = view.affinities(layer, equal_lengths=selector in EQUAL_LENGTHS)
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
        kind = self.layouts.kind(generator)
        if kind == "ordinary":
            memory = self.memories[int(torch.randint(len(self.memories), (), generator=generator))]
            return self.ordinary(number, memory)
        return self.edited(number, *self.hidden.draw_layout(self.layouts, kind, generator), kind)

    def edited(self, number: int, layout: Layout, rows: Sequence[int], kind: Kind) -> Update:
        """Returns the update from the laid-out clips. `rows` are those of all ranks."""
        arranged, device = self.hidden.arranged(layout, rows), self.model.device
        random = SampleNoise(self.seed, number, arranged.long.indices)
        copies = [arranged.came] * self.returns
        if kind == "gap":
            copies.append(arranged.stayed)
        x0 = torch.cat(copies, dim=2).to(device)
        with autocast(device, self.precision):
            with torch.no_grad():
                text = self.model.encode_text(arranged.long.context)
                clean = arranged.short.latents.to(device)
                targets = teacher_forced_views(self.model, text, self._cache(self.target), clean)
            student = self.views(layout.memory, text, arranged.long)[-1]
            error, figures = self.error(x0, text, [targets[-1]] * len(copies), [student] * len(copies), random)
        figures = {**figures, f"relative_error/{kind}": figures["relative_error"]}
        if self.layouts.selection_weight and student.mean_queries and kind == "gap":
            loss, missed = selection_loss(student, layout.shown)
            error, figures = error + self.layouts.selection_weight * loss, {**figures, "missed": missed.item()}
        return Update("compressor", error, figures)


@dataclass(kw_only=True)
class JointLayoutStage(TwinsStage):
    """Trains the model and the compressor together in the layouts of long videos, by flow matching on the clips
    themselves. A fraction of the steps is ordinary teacher forcing (`TwinsStage`).

    The gradient reaches the noisy block and the compressed blocks' passes; the cached frames of full resolution have
    none, as in Self-Forcing. In a gap the object always returns: departures show where it does not.
    """

    layouts: Layouts
    hidden: HiddenClips
    returns: int = 2

    def step(self, number: int) -> Update:
        generator = step_generator(self.seed, "layout", number)
        kind = self.layouts.kind(generator)
        if kind == "ordinary":
            return super().step(number)
        return self.edited(number, *self.hidden.draw_layout(self.layouts, kind, generator), kind)

    def edited(self, number: int, layout: Layout, rows: Sequence[int], kind: Kind) -> Update:
        """Returns the update from the laid-out clips. `rows` are those of all ranks."""
        arranged, device = self.hidden.arranged(layout, rows), self.model.device
        random = SampleNoise(self.seed, number, arranged.long.indices)
        x0 = torch.cat([arranged.came] * self.returns, dim=2).to(device)
        sigma = self.levels.draw(self.returns, random).repeat_interleave(self.frames_per_block, dim=1).to(device)
        noise = random.normal(x0.shape[1:]).to(device)
        past = arranged.long.latents
        past_sigma = (self.history_noise * random.uniform((1,))).expand(-1, past.shape[2])
        past = noised(past, past_sigma, random.normal(past.shape[1:]))
        with autocast(device, self.precision):
            text = self.model.encode_text(arranged.long.context)
            batch = replace(arranged.long, latents=past)
            given = self.model, self.high_res, self.rope, self.frames_per_block, self.vae
            view = compressed_views(*given, layout.memory, text, batch)[-1]
            flow = self.model.flow(noised(x0, sigma, noise), 1000 * sigma, text, SideBySide([view] * self.returns))
        error = flow_loss(flow, x0, noise)
        figures = {f"loss/{kind}": error.item()}
        if self.layouts.selection_weight and view.mean_queries and kind == "gap":
            loss, missed = selection_loss(view, layout.shown)
            error, figures = error + self.layouts.selection_weight * loss, {**figures, "missed": missed.item()}
        return Update(tuple(self.networks), error, figures)

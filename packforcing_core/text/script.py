"""Which prompt each block is generated with. A single prompt is a script with one cue."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from ..errors import PackForcingError

Change = Literal["", "cut", "flush"]
"""What happens to the past before a prompt's first block: nothing; a hard cut, which forgets all of it; or a flush,
which forgets all but the sink and the newest block (Infinity-RoPE, arXiv 2511.20649).
"""
CHANGES: tuple[Change, ...] = get_args(Change)
NOTHING: Change = ""


@dataclass(frozen=True, eq=False)
class Cue:
    """From block `first_block` on the text is `context` [1, L, text_dim].

    The first `blend_blocks` blocks use mixtures of the previous text and this one, in even steps. `recache` recomputes
    the visible blocks with the new text, once blending is done (LongLive). A `change` other than none happens at once,
    so such a cue does not blend.
    """

    first_block: int
    context: Tensor
    blend_blocks: int = 0
    recache: bool = False
    change: Change = ""


@dataclass(frozen=True, eq=False)
class Stretch:
    """Blocks `first`..`end`-1 with the same text. Before the first of them `change` is applied, and with `recache` the
    past is committed again.
    """

    first: int
    end: int
    context: Tensor
    recache: bool
    change: Change = ""


@dataclass(frozen=True, eq=False)
class Script:
    """Cues in order of time, the first at block 0. The text of a block does not depend on the clip's length."""

    cues: tuple[Cue, ...]

    def __post_init__(self):
        starts = [cue.first_block for cue in self.cues]
        if starts[:1] != [0] or any(b <= a for a, b in pairwise(starts)):
            raise PackForcingError(f"A script's prompts begin at blocks {starts}; expected 0 and then rising numbers.")
        if any(cue.blend_blocks < 0 for cue in self.cues):
            raise PackForcingError("blend_blocks is negative; expected 0 or more.")
        if self.cues[0].change:
            raise PackForcingError(f"The first prompt has a {self.cues[0].change}, but nothing comes before it.")

    @property
    def recaches(self) -> bool:
        """Whether any prompt change commits blocks again."""
        return any(cue.change == "flush" or (cue.recache and not cue.change) for cue in self.cues[1:])

    @property
    def cuts(self) -> frozenset[int]:
        """The first block after each hard cut."""
        return frozenset(cue.first_block for cue in self.cues if cue.change == "cut")

    @classmethod
    def of(cls, text: Tensor | Script) -> Script:
        """The embeddings of one prompt [1, L, text_dim] as a script; a script is returned unchanged."""
        return text if isinstance(text, Script) else cls((Cue(0, text),))

    def stretches(self, first: int, end: int) -> Iterator[Stretch]:
        """The stretches of blocks `first` to `end`-1, in order."""
        for stretch in self._stretches(end):
            if stretch.end > first:
                # A stretch entered in its middle has been re-cached already.
                begun = stretch.first < first
                again, change = stretch.recache and not begun, NOTHING if begun else stretch.change
                yield Stretch(max(first, stretch.first), stretch.end, stretch.context, again, change)

    def _stretches(self, end: int) -> Iterator[Stretch]:
        ends = [*(cue.first_block for cue in self.cues[1:]), None]
        for number, (cue, following) in enumerate(zip(self.cues, ends, strict=True)):
            if cue.first_block >= end:
                return
            blend = self.blend_blocks(number)
            for step in range(min(blend, end - cue.first_block)):
                block, share = cue.first_block + step, (step + 1) / (blend + 1)
                yield Stretch(block, block + 1, torch.lerp(*self._alike(number), share), False)
            alone, last = cue.first_block + blend, end if following is None else min(end, following)
            if alone < last:
                yield Stretch(alone, last, cue.context, cue.recache and number > 0, cue.change)

    def blend_blocks(self, number: int) -> int:
        """The number of blocks in which cue `number` is mixed with the one before. Each prompt is used unblended for at
        least one block.
        """
        cue = self.cues[number]
        if number == 0 or cue.change:
            return 0
        following = self.cues[number + 1 : number + 2]
        return min([cue.blend_blocks, *(after.first_block - cue.first_block - 1 for after in following)])

    def _alike(self, number: int) -> tuple[Tensor, Tensor]:
        """The texts of cues `number`-1 and `number`, padded to the same length."""
        pair = [self.cues[number - 1].context, self.cues[number].context]
        tokens = max(context.shape[1] for context in pair)
        before, after = (torch.nn.functional.pad(c.float(), (0, 0, 0, tokens - c.shape[1])) for c in pair)
        return before, after.to(before.device)

    def tensors(self) -> dict[str, Tensor]:
        """The script as tensors for a file: `context.N`, and `cues` [N, 4]: first block, blend blocks, recache,
        change.
        """
        numbers = [
            [cue.first_block, cue.blend_blocks, int(cue.recache), CHANGES.index(cue.change)] for cue in self.cues
        ]
        # Copied: a text that returns later is the same tensor here, and a safetensors file takes no shared memory.
        whole = torch.contiguous_format
        contexts = {f"context.{number}": cue.context.clone(memory_format=whole) for number, cue in enumerate(self.cues)}
        return {**contexts, "cues": torch.tensor(numbers, dtype=torch.int64)}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> Script:
        """The inverse of `tensors`. Raises PackForcingError for tensors in another form."""
        numbers = tensors.get("cues")
        if numbers is None or numbers.dtype != torch.int64 or numbers.ndim != 2 or numbers.shape[1] != 4:
            raise PackForcingError("The file has no prompts of a render: its tensor cues [N, 4] is missing.")
        if not bool(((numbers[:, 3] >= 0) & (numbers[:, 3] < len(CHANGES))).all()):
            raise PackForcingError("The file's prompts use an unknown kind of change. Start the render again.")
        contexts = _contexts(tensors, len(numbers))
        rows = zip(numbers.tolist(), contexts, strict=True)
        return cls(tuple(Cue(row[0], context, row[1], bool(row[2]), CHANGES[row[3]]) for row, context in rows))


def _contexts(tensors: Mapping[str, Tensor], count: int) -> Sequence[Tensor]:
    names = [f"context.{number}" for number in range(count)]
    if any(name not in tensors or tensors[name].ndim != 3 for name in names):
        raise PackForcingError(f"The file is missing some of its {count} prompts. Start the render again.")
    return [tensors[name] for name in names]

"""An SVG drawing, to scale, of what a block attends to, and where that is in the video.

Words are in braces ({sink}), to be replaced by the user's language; numbers are final.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, product

from ..cache.ledger import Ledger
from ..cache.partitions import PRUNED, Partitions
from ..geometry import VideoGeometry, size_text
from ..recipe.plan import RenderPlan, kinds
from ..recipe.recipe import Recipe

WIDTH, HEIGHT = 300, 128
COLOURS = {
    "sink": "#4f8cc9",
    "mid": "#d08a45",
    "recent": "#5aa867",
    "current": "#d6c84b",
    "gone": "#8884",
    "ahead": "none",
}
FONT = 12
"""As large as the text of the node's widgets."""
BAR_TOP, BAR_HEIGHT = 18, 32
LINE_TOP, LINE_HEIGHT = 76, 20
LETTER = 7.0
"""About the width of a letter of that size, in units of the drawing."""
ENGLISH = {"gpu": "KV cache", "ram": "in RAM", "bank": "bank"}
"""The words of the line with the most text, whose lengths decide what it says."""


@dataclass(frozen=True)
class Moment:
    """The state at block `block`. `selected` are the mid blocks in view, with the share (0..1) of layers that selected
    each, if known.
    """

    block: int
    selected: Mapping[int, float] | None = None


def selected_shares(selection: Iterable[Iterable[int]]) -> dict[int, float]:
    """Block -> share of layers that selected it, from a block's selections of bank blocks."""
    layers = [tuple(choice) for choice in selection]
    counts = Counter(block for choice in layers for block in choice)
    return {block: count / len(layers) for block, count in sorted(counts.items())}


def parts_in_view(geometry: VideoGeometry, partitions: Partitions, block: int) -> dict[str, int]:
    """Tokens in view when `block` is the oldest block being denoised: sink, mid, recent, current (all that roll)."""
    committed = block * geometry.frames_per_block
    together = min(partitions.current_blocks, geometry.blocks - block)
    window = Ledger.before(partitions, block).window(together)
    sink = min(committed, partitions.sink_frames)
    n = geometry.tokens_per_frame
    return {
        "sink": n * sink,
        "mid": geometry.compressed_tokens * len(window.mid_positions),
        "recent": n * (window.past_frames + len(window.copied) - sink),
        "current": n * together * geometry.frames_per_block,
    }


def block_states(geometry: VideoGeometry, partitions: Partitions, block: int) -> list[str]:
    """The state of each block of the video at block `block`: sink, mid, recent, current, gone or ahead."""
    frames = geometry.frames_per_block
    committed = block * frames
    together = min(partitions.current_blocks, geometry.blocks - block)
    ledger = Ledger.before(partitions, block)
    window = ledger.window(together)
    past = {placement.frame for placement in window.past + window.copied}
    recent_from = min((f for f in past if f >= partitions.sink_frames), default=committed)
    pruned = PRUNED in past  # Tokens of any frame may be among those that are left.
    states = []
    for index, first in enumerate(range(0, geometry.latent_frames, frames)):
        if first >= committed:
            states.append("current" if first < committed + together * frames else "ahead")
        elif first < partitions.sink_frames:
            states.append("sink")
        elif first + frames > recent_from:
            states.append("recent")
        else:
            states.append("mid" if pruned or index in ledger.banked else "gone")
    return states


def draw_window(recipe: Recipe, plan: RenderPlan, moment: Moment | None = None) -> str:
    """SVG text, 300 x 128 units: of the plan, or, with a `moment`, of the render at that block."""
    geometry, partitions = recipe.geometry, recipe.partitions
    at = moment or Moment(max(0, geometry.blocks - partitions.current_blocks))
    parts = parts_in_view(geometry, partitions, at.block) if moment else _planned_parts(plan)
    body = [
        *_headline(parts, None if moment else plan.cache_bytes),
        *_bar(parts, plan.attended_tokens),
        *_length(recipe, at, planned=moment is None),
        *_timeline(geometry, partitions, at),
        *_memory_line(partitions, plan, at),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" '
        f'font-family="sans-serif" font-size="{FONT}" fill="currentColor">{"".join(body)}</svg>'
    )


def _planned_parts(plan: RenderPlan) -> dict[str, int]:
    return {
        "sink": plan.sink_tokens,
        "mid": plan.mid_tokens,
        "recent": plan.recent_tokens,
        "current": plan.current_tokens,
    }


def _headline(parts: Mapping[str, int], planned_bytes: int | None) -> Iterator[str]:
    yield _text(2, 12, f"{{in_view}}: {sum(parts.values()):,} {{tokens}}")
    if planned_bytes is not None:
        yield _text(WIDTH - 2, 12, f"{{past}}: {size_text(planned_bytes)}", "end")


def _bar(parts: Mapping[str, int], full: int) -> Iterator[str]:
    x = 0.0
    for name, tokens in parts.items():
        if not tokens:
            continue
        width = WIDTH * tokens / max(full, 1)
        yield _rect(x, BAR_TOP, width, BAR_HEIGHT, COLOURS[name], f"{{{name}}}: {tokens:,} {{tokens}}")
        label, count = f"{{{name}}}", f"{tokens:,}"
        if width >= LETTER * len(name):
            yield _text(x + width / 2, BAR_TOP + 14, label, "middle", "#111")
        elif width >= FONT - 2 and LETTER * len(name) < BAR_HEIGHT:
            yield _upwards(x + width / 2, BAR_TOP + BAR_HEIGHT / 2, label, "#111")
        if width >= LETTER * len(count):
            yield _text(x + width / 2, BAR_TOP + 27, count, "middle", "#111")
        x += width


def _length(recipe: Recipe, at: Moment, planned: bool) -> Iterator[str]:
    geometry = recipe.geometry
    count = f"{geometry.blocks} {{{'block' if geometry.blocks == 1 else 'blocks'}}}"
    where = count if planned else f"{{block}} {at.block + 1} / {geometry.blocks}"
    yield _text(2, LINE_TOP - 8, f"{{video}}: {where}")
    seconds = recipe.video_frames / geometry.fps
    given = geometry.seconds - seconds  # The video does not show them.
    parts = f"{given:.1f} s {{given}} + {seconds:.1f} s" if given else f"{seconds:.1f} s"
    yield _text(WIDTH - 2, LINE_TOP - 8, parts, "end")


def _timeline(geometry: VideoGeometry, partitions: Partitions, at: Moment) -> Iterator[str]:
    cell = WIDTH / geometry.blocks
    states = list(enumerate(block_states(geometry, partitions, at.block)))
    for state, run in groupby(states, key=lambda item: item[1]):
        blocks = [block for block, _ in run]
        label = f"{{{state}}}: {blocks[0] + 1}-{blocks[-1] + 1}"
        faded = 0.35 if state == "mid" and at.selected is not None else 1.0
        yield _rect(blocks[0] * cell, LINE_TOP, len(blocks) * cell, LINE_HEIGHT, COLOURS[state], label, faded)
    for block, share in (at.selected or {}).items():
        height = LINE_HEIGHT * max(share, 0.1)
        label = f"{{block}} {block + 1}: {share:.0%} {{of_layers}}"
        yield _rect(block * cell, LINE_TOP + LINE_HEIGHT - height, max(cell, 0.5), height, COLOURS["mid"], label)


def _memory_line(partitions: Partitions, plan: RenderPlan, at: Moment) -> Iterator[str]:
    y = LINE_TOP + LINE_HEIGHT + 14
    past, bank = _fitting(_past_sizes(partitions, plan), _bank_sizes(partitions, plan))
    yield _text(2, y, past, label=_short(plan.stored) if plan.stored != plan.dtype else "")
    if bank:
        yield _text(WIDTH - 2, y, bank, "end")
    if at.selected:
        yield _text(2, y + 14, f"{{selected}}: {', '.join(str(block + 1) for block in _favourites(at.selected))}")


def _past_sizes(partitions: Partitions, plan: RenderPlan) -> tuple[str, str]:
    """The size of the KV cache with how its parts are kept ("bf16/int8"), and without, which is shorter."""
    size, dtype = f"{{gpu}}: {size_text(plan.buffer_bytes)}", _short(plan.dtype)
    kept = sorted(set(kinds(partitions, dtype)[0].values())) or [dtype]
    return f"{size} ({'/'.join(kept)})", size


def _bank_sizes(partitions: Partitions, plan: RenderPlan) -> tuple[str, ...]:
    """The size of the bank with its place, and without, which is shorter; nothing without a bank."""
    if not plan.bank_bytes:
        return ("",)
    kind, size = kinds(partitions, plan.dtype)[1], size_text(plan.host_bytes or plan.bank_bytes)
    few = "" if kind == plan.dtype else f" {kind}"
    return tuple(f"{{{word}}}{few}: {size}" for word in ("ram" if plan.host_bytes else "bank", "bank"))


def _short(dtypes: str) -> str:
    return dtypes.replace("bfloat", "bf").replace("float", "fp")


def _fitting(left: Sequence[str], right: Sequence[str]) -> tuple[str, str]:
    """The first pair that fits into one line. The label and the node's text say what is left out."""
    pairs = list(product(left, right))
    return next((pair for pair in pairs if LETTER * len("".join(pair).format(**ENGLISH)) <= WIDTH - 4), pairs[-1])


def _favourites(selected: Mapping[int, float], most: int = 5) -> list[int]:
    best = sorted(selected, key=lambda block: (-selected[block], block))[:most]
    return sorted(best)


def _text(x: float, y: float, text: str, anchor: str = "start", colour: str | None = None, label: str = "") -> str:
    fill, title = f' fill="{colour}"' if colour else "", f"<title>{label}</title>" if label else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{fill}>{text}{title}</text>'


def _upwards(x: float, y: float, text: str, colour: str) -> str:
    """Text that is read from below, with its middle at (x, y)."""
    turned = f'transform="rotate(-90 {x:.1f} {y:.1f})"'
    return f'<text x="{x:.1f}" y="{y + FONT / 3:.1f}" text-anchor="middle" fill="{colour}" {turned}>{text}</text>'


def _rect(x: float, y: float, width: float, height: float, colour: str, label: str, opacity: float = 1.0) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}" fill="{colour}" '
        f'fill-opacity="{opacity:g}" stroke="#8886" stroke-width="0.5"><title>{label}</title></rect>'
    )

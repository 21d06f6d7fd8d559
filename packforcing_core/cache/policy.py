"""The base class of cache policies: a small frozen dataclass that is its own configuration.

A policy makes `Partitions`, the plan that the cache follows. The policies are in `policies/`, one file each;
`config.py` lists them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, NamedTuple, get_args

from ..errors import PackForcingError
from .partitions import Part, Partitions

AUTO = -1
"""The value of a knob whose default depends on the block length."""
TRAINED_FRAMES = 21
"""Latent frames of the clips that the Self-Forcing family was trained on."""
NO_PART, ALL_PARTS, INT4 = "none", "all", "_int4"


class Knob(NamedTuple):
    """One setting of a policy, as a widget or a command line option. With `choices` the value is one of them."""

    name: str
    default: int | float | bool | str
    minimum: float
    maximum: float
    help: str
    choices: tuple[str, ...] = ()
    advanced: bool = False

    def check(self, policy: str, value: Any) -> None:
        """Raises PackForcingError if `value` has the wrong type or is out of range."""
        if self.choices:
            fits, expected = value in self.choices, f"one of {', '.join(self.choices)}"
        elif isinstance(self.default, bool):
            fits, expected = isinstance(value, bool), "True or False"
        else:
            kinds = (int, float) if isinstance(self.default, float) else (int,)
            unit = "a number" if isinstance(self.default, float) else "a whole number"
            fits = isinstance(value, kinds) and self.minimum <= value <= self.maximum
            expected = f"{unit} from {self.minimum} to {self.maximum}"
        if not fits:
            raise PackForcingError(f"{self.name} of policy '{policy}' is {value!r}; expected {expected}.")


def knob(
    default: int | float | bool | str,
    help: str,
    minimum: float = 0,
    maximum: float = 100_000,
    choices: tuple[str, ...] = (),
    advanced: bool = False,
) -> Any:
    """A dataclass field with its limits and help text; an `advanced` one is hidden by default on the node."""
    limits = {"minimum": minimum, "maximum": maximum, "choices": choices}
    return field(default=default, metadata={"default": default, **limits, "help": help, "advanced": advanced})


def int8_knob(*choices: str) -> Any:
    """The knob that every policy has: which parts of the cache are stored as int8, or everything as int4."""
    return knob(
        NO_PART,
        "Stores these parts of the KV cache as int8: about half the VRAM or less. Costs one extra read of the cache "
        "per layer and step, and up to 0.4% rounding error. all_int4: all as int4, about half of that again; its "
        "rounding error of up to 7% changes the video.",
        choices=(NO_PART, *choices, ALL_PARTS, ALL_PARTS + INT4),
        advanced=True,
    )


def int8_parts(choice: str) -> tuple[Part, ...]:
    """The parts of the cache that a choice of `int8_knob` names."""
    choice = choice.removesuffix(INT4)
    return tuple(part for part in get_args(Part) if choice == ALL_PARTS or part in choice.split("+"))


def packing(choice: str) -> dict[str, Any]:
    """The `Partitions` fields for a choice of `int8_knob`."""
    return {"packed": int8_parts(choice), "bits": 4 if choice.endswith(INT4) else 8}


@dataclass(frozen=True)
class Policy:
    """What the cache keeps of the past. Subclasses are frozen dataclasses with a `name` for commands, a `title` for
    menus, and one sentence in `keeps`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    keeps: ClassVar[str]

    def __post_init__(self):
        for k in self.knobs():
            k.check(self.name, getattr(self, k.name))

    @classmethod
    def knobs(cls) -> Iterator[Knob]:
        for f in fields(cls):
            yield Knob(f.name, **f.metadata)

    def partitions(self, frames_per_block: int, current_blocks: int = 1) -> Partitions:
        """The plan for blocks of `frames_per_block` latent frames, `current_blocks` of them denoised together in a
        rolling rollout. Raises PackForcingError if the knobs do not allow it.
        """
        raise NotImplementedError

    def fitted_to(self, compressor_span: float | None) -> Policy:
        """This policy, adapted to the compressor: one trained with blocks that span `compressor_span` latent frames (0:
        their true length), or none (None).
        """
        return self

    def block_by_block(self, current_blocks: int, because: str) -> None:
        """Raises PackForcingError if a rolling rollout denoises several blocks together, which this policy does not
        support.
        """
        if current_blocks > 1:
            raise PackForcingError(
                f"Policy '{self.name}' {because}, but a rolling rollout denoises {current_blocks} blocks together. "
                "Choose another policy, or a preset that samples block by block (self-forcing)."
            )

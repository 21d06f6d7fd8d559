"""Parses prompts of the toy world: what a video must show."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ....errors import PackForcingError
from ....miniature.world import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES


@dataclass(frozen=True)
class Promised:
    """A thing that a prompt names; None is what it leaves open ("a shape"). `place` is where it begins: names of a row
    and a column.
    """

    shape: str | None
    colour: str | None
    place: tuple[str, str] | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.colour, self.shape or "shape") if word)


@dataclass(frozen=True)
class Promise:
    """`kind` is one of scene.KINDS: `return` lets a thing be out of sight for a while, `pan` shows bars alone."""

    kind: str
    background: str
    things: tuple[Promised, ...] = ()


_PLACE = rf" at the ({'|'.join(ROWS)}) ({'|'.join(COLUMNS)})"
_UNNAMED_PLACE = _PLACE.replace("(", "(?:")
_THING = rf"a (?:(?:{'|'.join(COLOURS)}) (?:{'|'.join(SHAPES)})|shape)(?:{_UNNAMED_PLACE})?"
_KINDS = {
    "pan": "the view pans over bars",
    "return": rf"(?P<things>{_THING}) leaves and returns",
    "bounce": rf"(?P<things>{_THING}(?: and {_THING})*) bounces?",
}


def parse_prompt(prompt: str) -> Promise:
    """What a prompt promises. Raises PackForcingError where it is none of this world."""
    words = " ".join(prompt.lower().replace(".", " ").split())
    for kind, pattern in _KINDS.items():
        found = re.fullmatch(rf"{pattern} on a (?P<background>{'|'.join(BACKGROUNDS)}) background", words)
        if found:
            names = found.groupdict().get("things")
            things = tuple(_promised(name) for name in names.split(" and ")) if names else ()
            return Promise(kind, found["background"], things)
    raise PackForcingError(
        f"The prompt {prompt!r} is none of the toy world's; expected one such as 'a red circle at the top left "
        "bounces on a dark background', 'a red circle and a blue square bounce on a dark background', 'a shape leaves "
        "and returns on a teal background' or 'the view pans over bars on a grey background' (colours "
        f"{', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; backgrounds {', '.join(BACKGROUNDS)})."
    )


def belongs(prompt: str) -> bool:
    """Whether a prompt is of this world."""
    try:
        parse_prompt(prompt)
    except PackForcingError:
        return False
    return True


def _promised(name: str) -> Promised:
    found = re.search(_PLACE, name)
    place = (found[1], found[2]) if found else None
    _, *words = re.sub(_PLACE, "", name).split()
    return Promised(None, None, place) if words == ["shape"] else Promised(words[1], words[0], place)

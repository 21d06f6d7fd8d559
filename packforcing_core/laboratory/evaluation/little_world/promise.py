"""Parses prompts of the toy world into what a video must show."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ....errors import PackForcingError
from ....miniature.world import BACKGROUNDS, COLOURS, COLUMNS, ROWS, SHAPES


@dataclass(frozen=True)
class Promised:
    """An object that a prompt names. A property is None if the prompt leaves it open ("a shape"). `place` is the
    initial position: the names of a row and a column.
    """

    shape: str | None
    colour: str | None
    place: tuple[str, str] | None = None

    def __str__(self) -> str:
        return " ".join(word for word in (self.colour, self.shape or "shape") if word)


@dataclass(frozen=True)
class Promise:
    """What a prompt requires. `kind` is one of scene.KINDS: with `return` an object may be out of sight for a while;
    with `pan` there are only bars.
    """

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
    """Returns what a prompt requires. Raises PackForcingError if it is not a prompt of the toy world."""
    words = " ".join(prompt.lower().replace(".", " ").split())
    for kind, pattern in _KINDS.items():
        found = re.fullmatch(rf"{pattern} on a (?P<background>{'|'.join(BACKGROUNDS)}) background", words)
        if found:
            names = found.groupdict().get("things")
            things = tuple(_promised(name) for name in names.split(" and ")) if names else ()
            return Promise(kind, found["background"], things)
    raise PackForcingError(
        f"The prompt {prompt!r} is not one of the toy world; expected one such as 'a red circle at the top left "
        "bounces on a dark background', 'a red circle and a blue square bounce on a dark background', 'a shape leaves "
        "and returns on a teal background' or 'the view pans over bars on a grey background' (colours "
        f"{', '.join(COLOURS)}; shapes {', '.join(SHAPES)}; backgrounds {', '.join(BACKGROUNDS)})."
    )


def belongs(prompt: str) -> bool:
    """Returns whether a prompt is one of the toy world."""
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

"""Finds the times in a prompt, in the punctuation that people use; refuses unclear ones and shows the line.

Times are in brackets of one kind anywhere ([5s] or (5s), also full-width), or at the start of lines (0:05 a sea; 5s: a
sea), or are the keys of a JSON map ({"5s": "a sea"}; keys without a unit are seconds). Text that looks like a timeline
but cannot be read as one is an error, never one long prompt.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from ..errors import PackForcingError

EXPECTED_TIME = (
    "expected a time such as [0s], [12.5s], [1m05s] or [1:05], or one with a change: [20s cut] or [20s flush]"
)

# Full-width forms and Chinese or Japanese brackets, replaced one for one, so that character positions stay valid.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)} | str.maketrans(
    "\u3000\u3010\u3011\u3014\u3015", " [][]"
)
_QUOTES = str.maketrans("\u201c\u201d\u201e\u201f", '""""')

_MINUTES, _SECONDS = r"(?:minutes?|mins?|m|\u5206)", r"(?:seconds?|secs?|s|\u79d2)"
TIME = re.compile(
    rf"(?:(?P<minutes>\d{{1,6}})\s*{_MINUTES}\s*)?"
    rf"(?:(?P<seconds>\d{{1,7}}(?:\.\d{{1,6}})?|\.\d{{1,6}})\s*{_SECONDS})?"
    r"|(?:(?P<hours>\d{1,4}):(?=\d\d:))?(?P<clock_minutes>\d{1,6}):(?P<clock_seconds>[0-5]?\d(?:\.\d{1,6})?)",
    re.IGNORECASE,
)
# An unambiguous time, which needs no brackets: with a unit, or a clock time with two-digit seconds.
_SURE = (
    rf"(?:(?:\d{{1,6}}[ \t]*{_MINUTES}[ \t]*)?(?:\d{{1,7}}(?:\.\d{{1,6}})?|\.\d{{1,6}})[ \t]*{_SECONDS}(?![a-z])"
    rf"|\d{{1,6}}[ \t]*{_MINUTES}(?![a-z])|(?:\d{{1,4}}:)?\d{{1,6}}:[0-5]\d(?:\.\d{{1,6}})?(?![\d:]))"
)
_SEPARATOR = r"(?::|\||=>?|>|\u2192|-|\u2013|\u2014)"

# Square brackets are common in prompts: only those that begin with a number must be a time. Round brackets are mostly
# prompt weights: only those that contain just a time count as one.
_SQUARE = re.compile(r"\[[ \t]*([-+.\d][^\[\]\n]{0,40})\]")
_ROUND = re.compile(rf"\([ \t]*({_SURE})[ \t]*\)", re.IGNORECASE)
_LINE = re.compile(rf"^[ \t]*({_SURE})[ \t]*({_SEPARATOR}[ \t]*|(?=[ \t\n]|$))", re.IGNORECASE | re.MULTILINE)
_WORD_IN_PLACE_OF_MARK = re.compile(r"^[ \t]*\[([^\[\]\n]{0,40})\]", re.MULTILINE)

# Errors that are checked if no time was found, and inside each prompt.
_RANGE = re.compile(rf"(?:-|\u2013|\u2014|~|to\b|until\b|bis\b)?[ \t]?{_SURE}", re.IGNORECASE)
_NUMBERED = re.compile(r"^[ \t]*(\d{1,7}(?:\.\d{1,6})?)[ \t]*:[ \t]*\S", re.MULTILINE)
_FRAMES = re.compile(r"^[ \t]*(?:[\[({][ \t]*)?frames?[ \t]*\d", re.IGNORECASE | re.MULTILINE)
_STRAY = re.compile(rf"(?:[<{{*|@#]|^|[,;])[ \t]*({_SURE})[ \t]*(?:[>}}*|:=]|\u2192)", re.IGNORECASE | re.MULTILINE)
_HALF = re.compile(rf"\[[ \t]*{_SURE}(?![^\[\]\n]{{0,40}}\])|^[ \t]*{_SURE}[ \t]*\]", re.IGNORECASE | re.MULTILINE)
_NUMBER = re.compile(r"\s*\d{1,7}(\.\d{1,6})?\s*", re.ASCII)
_KEY = re.compile(r"([\"'])\s{0,9}[-+.\d][^\"'\n]{0,40}\1\s{0,9}:")


@dataclass(frozen=True)
class Entry:
    """One timed prompt as typed: the text of its mark, and the prompt after it."""

    mark: str
    text: str


def find_entries(text: str) -> tuple[str, list[Entry]]:
    """(the text before the first mark, the entries); no entries if the text is a plain prompt.

    Raises PackForcingError, with the line, for text that looks like a timeline but cannot be read as one.
    """
    seen = text.translate(_NARROW)
    if _is_map(seen):
        return "", _entries_of_json(text)
    kinds: dict[str, list[re.Match]] = {
        "square brackets": list(_SQUARE.finditer(seen)),
        "round brackets": list(_ROUND.finditer(seen)),
        "lines": _timed_lines(seen),
    }
    half = _HALF.search(seen)
    if half:
        raise _unread(text, half.start(), "A time has only one of its two brackets")
    used = [kind for kind, marks in kinds.items() if marks]
    if not used:
        _refuse_lookalikes(text, seen)
        return text, []
    marks = kinds[used[0]]
    if len(used) > 1:
        other = kinds[used[1]][0]
        raise _unread(
            text, other.start(), f"Times are written in {used[0]} and in {used[1]}; expected the same for all"
        )
    if used == ["square brackets"]:
        _refuse_words(seen)
    ends = [*(mark.start() for mark in marks[1:]), len(text)]
    for mark, end in zip(marks, ends, strict=True):
        _refuse_times_inside(text, seen, mark.end(), end, lines=used == ["lines"])
    spans = zip(marks, ends, strict=True)
    return text[: marks[0].start()], [Entry(mark[1], text[mark.end() : end]) for mark, end in spans]


def unmarked(text: str) -> tuple[str, ...]:
    """A warning for a plain prompt of several lines, one of which begins with a time, as "5s a storm"."""
    several = len(text.strip().splitlines()) > 1
    lines = _LINE.finditer(text.translate(_NARROW)) if several and not find_entries(text)[1] else ()
    return tuple(
        f"Warning: the line that begins with '{line[1]}' is read as a part of the prompt. If that is a time, write "
        f"[{line[1]}], and [0s] before the first prompt."
        for line in lines
    )


def _is_map(seen: str) -> bool:
    opened = seen.translate(_QUOTES).strip()
    inner = opened.removeprefix("{").lstrip()
    return bool(_KEY.match(inner)) or (opened != inner and inner[:1].isdigit() and '"' in inner)


def narrow(text: str) -> str:
    """The text with full-width letters, digits and punctuation as ASCII has them."""
    return text.translate(_NARROW)


def _timed_lines(seen: str) -> list[re.Match]:
    """Lines that begin with times: two or more, or one at 0 or followed by a separator."""
    lines = list(_LINE.finditer(seen))
    begins = lines[:1] and (not re.search(r"[1-9]", lines[0][1]) or lines[0][2])
    return lines if len(lines) > 1 or begins else []


def _entries_of_json(text: str) -> list[Entry]:
    inner = text.translate(_QUOTES).strip().removeprefix("{").removesuffix("}").strip().removesuffix(",")
    try:
        pairs = json.loads(f"{{{inner}}}", object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise _unread(text, 0, f"This looks like a JSON map of prompts but cannot be read ({error})") from error
    for key, value in pairs:
        if not isinstance(value, str):
            raise _unread(text, 0, f"The key {key!r} of the JSON map has no text; expected a prompt")
    return [Entry(f"{key}s" if _NUMBER.fullmatch(key) else key, value) for key, value in pairs]


def _refuse_words(seen: str) -> None:
    """Raises PackForcingError if one line begins with a word in brackets while other lines begin with times."""
    for found in _WORD_IN_PLACE_OF_MARK.finditer(seen):
        if not _SQUARE.match(found[0].strip()):
            raise PackForcingError(f"A line begins with [{found[1].strip()}]; {EXPECTED_TIME}.")


def _refuse_times_inside(text: str, seen: str, start: int, end: int, *, lines: bool) -> None:
    """Raises PackForcingError for a second time inside a prompt: a range, or an entry without a line break."""
    if _RANGE.match(seen[start:end].lstrip(" \t")):
        raise _unread(text, start, "Two times follow each other; expected only the time at which a prompt starts")
    stray = _STRAY.search(seen, start, end) if lines else None
    if stray or (lines and re.compile(rf"[,;.][ \t]*{_SURE}[ \t]", re.IGNORECASE).search(seen, start, end)):
        raise _unread(text, start, "There is a second time in the same line; expected one line per prompt")


def _refuse_lookalikes(text: str, seen: str) -> None:
    numbered = list(_NUMBERED.finditer(seen))
    checks: tuple[tuple[re.Match | None, str], ...] = (
        (numbered[0] if len(numbered) > 1 else None, "Lines begin with numbers without a unit"),
        (_FRAMES.search(seen), "Prompts are timed in frames; expected seconds"),
        (_STRAY.search(seen), "This looks like a time"),
    )
    for found, what in checks:
        if found:
            raise _unread(text, found.start(), what)


def _unread(text: str, place: int, what: str) -> PackForcingError:
    """An error that shows the first nonempty line from position `place` on."""
    begin = text.rfind("\n", 0, place) + 1
    line: str = next((line.strip() for line in text[begin : begin + 400].splitlines() if line.strip()), "")
    shown = line if len(line) <= 80 else f"{line[:77]}..."
    return PackForcingError(f"{what}, in the line {shown!r}. Write each time as in '[0s] a sea [20s] a storm'.")

"""Recognises the family of a file by its keys, metadata or name, and says how.

An autoregressive file has the same tensors as a bidirectional one, so most files are recognised by name. Every sign
that counted is listed in `Recognition.how`, as is the preset used for unrecognised files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike

from .families import DEFAULT_FAMILY, FAMILIES, Family

_SAYS_CAUSAL = re.compile(r"causal|causvid|autoregressive|forcing|long[-_ ]?live|packforcing")

# Stages of minWM's training before distillation to a few steps.
_UNDISTILLED = re.compile(r"action2v/(bidirectional|ar_diffusion_tf)/")


@dataclass(frozen=True)
class Recognition:
    """The family of a file, or None if unknown, and one sentence per sign that counted.

    `resembles` lists the families that a file with this name and layout may belong to, if its name is ambiguous;
    `family` is then None or a guess among them.
    """

    family: Family | None
    how: tuple[str, ...]
    resembles: tuple[Family, ...] = ()


def recognise(path: str | PathLike[str], metadata: Mapping[str, str] | None, keys: Iterable[str]) -> Recognition:
    """The family of a file, with the reasons.

    `keys` are the names as stored, with top-level keys joined by a dot ("generator_ema.model...").
    """
    keys = list(keys)
    for family in FAMILIES.values():
        own = next((key for key in keys if any(re.search(pattern, key) for pattern in family.own_keys)), None)
        if own:
            return Recognition(family, (f"keys: only {family.title} has {own}",))
    where = _folders_and_file(path)
    tops = {top for top in ("generator_ema", "generator", "model", "critic") if _has_top(keys, top)} or {""}
    causal = metadata_says_causal(metadata)
    marked = ("metadata: ComfyUI's marker causal_ar says autoregressive",) if causal else ()
    matched = _match_patterns(where, tops, causal)
    if matched:
        return Recognition(matched[0], (matched[1], *marked))
    if causal:
        return Recognition(FAMILIES["comfyui-causal"], marked)
    file = where.rsplit("/", 1)[-1]
    candidates = _match_generic(file, tops)
    if len(candidates) == 1:
        how = f"name: {file} with this top-level key is {candidates[0].title}'s"
        return Recognition(candidates[0], (how,), candidates)
    nothing = "unknown: neither keys, metadata nor file name tell how it was trained"
    return Recognition(None, (nothing,), candidates)


def metadata_says_causal(metadata: Mapping[str, str] | None) -> bool:
    """Whether safetensors metadata has ComfyUI's marker: config = {"transformer": {"causal_ar": true}}."""
    try:
        config = json.loads((metadata or {}).get("config", "{}"))
    except ValueError:
        return False
    transformer = config.get("transformer") if isinstance(config, dict) else None
    return isinstance(transformer, dict) and transformer.get("causal_ar") is True


def origin_warnings(
    recognition: Recognition, path: str | PathLike[str], metadata: Mapping[str, str] | None
) -> list[str]:
    """Warnings about a file's origin: that it is likely bidirectional, that the family is a guess, the family's
    notes.
    """
    family, where = recognition.family, _folders_and_file(path)
    file = str(path).replace("\\", "/").rsplit("/", 1)[-1]
    if family is None:
        return [_unknown(recognition, file, where)]
    warnings = [f"{family.title}: {note}" for note in family.notes]
    if not (family.autoregressive or metadata_says_causal(metadata)):
        warnings.insert(0, f"{file} is likely a bidirectional model: {_FALLS_APART}")
    if family in recognition.resembles:
        warnings.insert(
            0, f"The file name {file} is ambiguous: sampled as {family.title}. Choose a preset if that is wrong."
        )
    if family.name == "minwm" and (stage := _UNDISTILLED.search(where)):
        warnings.append(
            f"{file} is from minWM's stage {stage[1]}, before distillation to a few steps: use dmd/model.pt instead."
        )
    return warnings


_FALLS_APART = (
    "neither its name nor its metadata says autoregressive. Sampled block by block, the video would fall apart. Use a "
    "Self-Forcing-style checkpoint, or choose its preset if it is one."
)


def _unknown(recognition: Recognition, file: str, where: str) -> str:
    sampled = f"It will be sampled as {DEFAULT_FAMILY.title}: {DEFAULT_FAMILY.sampling}."
    if recognition.resembles:
        names = " or ".join(family.title for family in recognition.resembles)
        return f"{file} is not of a known family; its name and layout resemble {names}. {sampled} Choose its preset."
    if _SAYS_CAUSAL.search(where):
        return (
            f"{file} is not of a known family; its keys and shapes resemble {DEFAULT_FAMILY.title}'s. {sampled} "
            "Choose a preset if that is wrong."
        )
    return (
        f"{file} is not of a known family; its keys and shapes resemble Wan2.1 T2V, so it is likely a bidirectional "
        f"model: {_FALLS_APART} {sampled}"
    )


def _folders_and_file(path: str | PathLike[str]) -> str:
    """The last two folders and the file, in lower case, with slashes."""
    return "/".join(str(path).replace("\\", "/").lower().split("/")[-3:])


def _has_top(keys: list[str], top: str) -> bool:
    return any(key.startswith(top + ".") for key in keys)


def _match_patterns(where: str, tops: set[str], causal: bool) -> tuple[Family, str] | None:
    """The family with the longest match in the file's own name, else in its folder's name, else in the parent folder's,
    and how it was recognised.

    Among equal matches (causal_forcing.pt) the one whose top-level key is in the file wins.
    """
    own = where.rfind("/") + 1
    folder = where.rfind("/", 0, max(0, own - 1)) + 1
    best: tuple[int, int, int, bool] = (0, 0, 0, False)
    found = None
    for family in FAMILIES.values():
        if not family.autoregressive and (causal or _SAYS_CAUSAL.search(where, own)):
            continue
        has_top = bool(tops.intersection(family.top_keys))
        for match in (match for pattern in family.patterns for match in re.finditer(pattern, where)):
            in_file, in_folder = (max(0, match.end() - max(start, match.start())) for start in (own, folder))
            rank = (in_file, in_folder, match.end() - match.start(), has_top)
            if rank > best:
                place = "the file's name" if in_file else "its folder's name"
                best, found = rank, (family, f"name: {match[0]!r} in {place}")
    return found


def _match_generic(file: str, tops: set[str]) -> tuple[Family, ...]:
    if "critic" in tops or "generator_ema" in tops:  # A training checkpoint of some family.
        return ()
    named = (family for family in FAMILIES.values() if file in family.generic_files)
    return tuple(family for family in named if tops.intersection(family.top_keys))

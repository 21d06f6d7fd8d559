"""Reads a file into a checked state dict (`read_checkpoint`), or tells what a file is without loading it
(`inspect`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from ..errors import PackForcingError
from ..model.config import WanConfig
from .families import Family
from .files import TensorFile, TensorInfo, open_tensors
from .keys import (
    check_keys,
    choose_group,
    expected_shapes,
    group_names,
    is_quantisation_name,
    set_compressor_aside,
    set_unused_aside,
    split_name,
)
from .kinds import Kind, classify, foreign, quantisation, size_name
from .recognition import origin_warnings, recognise
from .scales import CODES, OF_INPUTS, Scaled, decode, pair, scaled

FP8 = frozenset({"F8_E4M3", "F8_E5M2"})

# The metadata entry of ComfyUI's safetensors files that lists quantised layers: JSON {"layers": {name: how}}.
_QUANTISATION = "_quantization_metadata"

# The dtypes of unquantised weights. Others (integers, complex numbers) are packed weights, or no weights.
WEIGHT_DTYPES = FP8 | {"F16", "BF16", "F32", "F64"}

# Packed weights of these dtypes have another shape than the weight they represent.
PACKED = frozenset({"U8", "I8", "F4"})


@dataclass(frozen=True)
class Checkpoint:
    """A transformer's weights with their official names, and what is known about them.

    `state_dict` is on the CPU, memory-mapped if the file allows. `compressor` holds the tensors whose names begin with
    `compressor.` or `pack_compressor.`, or is None. `quantised`: scales are included (see `read_checkpoint`). `taken`
    is the top-level key (with prefixes) that was read, `others` those that were not. `how` says how the family was
    recognised.
    """

    path: Path
    state_dict: Mapping[str, Tensor]
    config: WanConfig
    family: Family | None
    compressor: Mapping[str, Tensor] | None
    metadata: Mapping[str, str]
    taken: str
    others: tuple[str, ...]
    quantised: bool
    warnings: tuple[str, ...]
    how: tuple[str, ...] = ()

    def unrounded(self) -> Mapping[str, Tensor] | None:
        """The weights; None if the file has them in 8 bits or fewer, which is too coarse to tell a base from its
        fine-tunes.
        """
        return None if (FP8 | PACKED).intersection(inspect(self.path).dtypes) else self.state_dict


@dataclass(frozen=True)
class Inspection:
    """What a file is, from names, shapes and metadata only. `parameters` counts the part that would be used.

    `quantised` weights have scales that only a host such as ComfyUI can use (see `read_checkpoint`).
    """

    path: Path
    kind: str
    title: str
    advice: str
    file_bytes: int
    parameters: int
    dtypes: Mapping[str, int]  # dtype as safetensors spells it -> elements
    fronts: tuple[str, ...]
    taken: str | None = None
    config: WanConfig | None = None
    family: Family | None = None
    problems: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    quantised: bool = False
    how: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether `read_checkpoint` can read it."""
        return self.usable_by_host and not self.quantised

    @property
    def usable_by_host(self) -> bool:
        """Whether `read_checkpoint(keep_quantised=True)` can read it, for a host that supports the scales."""
        return self.kind == "transformer" and not self.problems


@dataclass(frozen=True)
class _Selection:
    """The tensors of a file that make up the transformer: official name -> name in the file, per part."""

    taken: str
    weights: Mapping[str, str]
    scales: Mapping[str, str]
    compressor: Mapping[str, str]
    others: tuple[str, ...]
    family: Family | None
    metadata: Mapping[str, str]
    scaled: Scaled
    warnings: tuple[str, ...]
    how: tuple[str, ...]


def read_checkpoint(path: str | PathLike[str], key: str | None = None, *, keep_quantised: bool = False) -> Checkpoint:
    """Reads a Wan2.1 T2V transformer from a file of any family. Raises PackForcingError with the reason if it cannot.

    `key` chooses a top-level key of a training checkpoint ("generator", "generator_ema", "critic"). Plain fp8 weights
    are cast to bfloat16; 8-bit codes with scales are decoded (`scales`). With `keep_quantised`, for a host that
    supports scales, weights and scales are returned as stored if the file is marked as that host expects; scales are
    named after their layer. Without it, files that only such a host can read are refused.
    """
    file = open_tensors(path)
    groups = group_names(file.tensors)
    other = _foreign(file, groups)
    if other:
        raise PackForcingError(f"{file.path.name} is {other.title}. {other.advice}")
    selection = _select(file, groups, key)
    if selection is None:
        kind = classify(groups, file)
        raise PackForcingError(f"{file.path.name} is {kind.title}, not a Wan transformer. {kind.advice}")
    if selection.scaled is Scaled.HOST and not keep_quantised:
        raise PackForcingError(f"{file.path.name} cannot be read here. {_QUANTISED_ADVICE}")
    config, problems = _check(file, selection)
    if config is None or problems:
        raise PackForcingError(f"{file.path.name}: {' '.join(problems)}")
    kept = keep_quantised and selection.scaled in (Scaled.ANYWHERE, Scaled.HOST)
    return Checkpoint(
        path=file.path,
        state_dict=_weights(file, selection, kept=kept, cast=not keep_quantised),
        config=config,
        family=selection.family,
        compressor=_load(file, selection.compressor) or None,
        metadata=selection.metadata,
        taken=selection.taken,
        others=selection.others,
        quantised=kept,
        warnings=selection.warnings,
        how=selection.how,
    )


def inspect(path: str | PathLike[str], key: str | None = None) -> Inspection:
    """What a file is and what to do with it, without reading its tensors.

    Raises PackForcingError only if the file cannot be read at all (missing, truncated, refused).
    """
    file = open_tensors(path)
    groups = group_names(file.tensors)
    fronts = tuple(groups)
    other = _foreign(file, groups)
    selection = None if other else _select(file, groups, key)
    if selection is None:
        kind = other or classify(groups, file)
        how = _lora_says(file) if kind.name == "lora" else ()
        return _inspection(file, file.tensors.values(), kind, fronts=fronts, how=how)
    config, problems = _check(file, selection)
    title = "a Wan2.1 T2V transformer" + (f", {size_name(config)}" if config else ", but not a usable one")
    scales = {name: file.tensors[there] for name, there in (*selection.weights.items(), *selection.scales.items())}
    title = ", ".join(filter(None, (title, quantisation(scales, file.metadata))))
    advice = _QUANTISED_ADVICE if selection.scaled is Scaled.HOST else _PLAIN_ADVICE
    return _inspection(
        file,
        [file.tensors[name] for name in selection.weights.values()],
        Kind("transformer", title, "It cannot be used as it is: see the problems." if problems else advice),
        fronts=fronts,
        taken=selection.taken,
        config=config,
        family=selection.family,
        problems=problems,
        warnings=selection.warnings,
        quantised=selection.scaled is Scaled.HOST,
        how=(*selection.how, *_shapes_say(config)),
    )


_PLAIN_ADVICE = "Put it into models/diffusion_models, or give it to `packforcing render --checkpoint`."
_QUANTISED_ADVICE = (
    "Its weights are quantised with scales that only ComfyUI can read: put it into "
    "models/diffusion_models and load it there with Load Diffusion Model or our loader node, "
    "or use the fp16 or bf16 file on the command line."
)


def _foreign(file: TensorFile, groups: Mapping[str, Mapping[str, str]]) -> Kind | None:
    """A model related to Wan, if no part of the file can be sampled here."""
    shapes = ({name: file.tensors[there].shape for name, there in group.items()} for group in groups.values())
    found = (foreign(part, part, str(file.path)) for part in shapes)
    return next((kind for kind in found if kind), None)


def _shapes_say(config: WanConfig | None) -> tuple[str, ...]:
    return (f"shapes: Wan2.1 T2V, {size_name(config)}",) if config else ()


def _select(file: TensorFile, groups: Mapping[str, Mapping[str, str]], key: str | None) -> _Selection | None:
    recognised = recognise(file.path, file.metadata, file.tensors)
    family = recognised.family
    front = choose_group(groups, key, family.top_keys if family else ())
    if front is None:
        return None
    group = groups[front]
    names, compressor = set_compressor_aside(group)
    names, unused = set_unused_aside(names)
    beside = groups.get("", {}) if front else {}
    scales = {name: group[name] for name in names if is_quantisation_name(name)}
    others = tuple(other for other in groups if other != front)
    weights = {name: group[name] for name in names if name not in scales}
    known = scaled({name: file.tensors[there] for name, there in scales.items()}, _QUANTISATION in file.metadata)
    return _Selection(
        taken=front,
        weights=weights,
        scales=scales,
        compressor={name: group[name] for name in compressor}
        | {name: beside[name] for name in set_compressor_aside(beside)[1]},
        others=others,
        family=family,
        metadata=_official_metadata(file),
        scaled=known,
        warnings=tuple(
            origin_warnings(recognised, file.path, file.metadata)
            + [f"{count} tensors are not used: {what}." for what, count in unused.items()]
            + _input_warnings(known, scales)
            + _taken_warnings(front, others)
            + _dtype_warnings(known, [file.tensors[name] for name in weights.values()])
        ),
        how=recognised.how,
    )


def _check(file: TensorFile, selection: _Selection) -> tuple[WanConfig | None, tuple[str, ...]]:
    """(sizes, problems); the sizes are None if they cannot be read."""
    infos = {name: file.tensors[there] for name, there in selection.weights.items()}
    try:
        config = WanConfig.from_state_dict({name: info.shape for name, info in infos.items()})
    except PackForcingError as error:
        return None, (str(error),)
    if selection.scaled in (Scaled.HERE, Scaled.ANYWHERE):
        _, problems = pair(infos, {name: file.tensors[there] for name, there in selection.scales.items()})
        if problems:
            return config, problems
    allowed = WEIGHT_DTYPES | {Scaled.HOST: PACKED, Scaled.NOT: frozenset()}.get(selection.scaled, CODES)
    odd = [f"{name} is {info.dtype}" for name, info in infos.items() if info.dtype not in allowed]
    if odd:
        more = f" and {len(odd) - 1} more are not weights either" if len(odd) > 1 else ""
        return config, (f"{odd[0]}{more}; expected weights of {', '.join(sorted(allowed))}.",)
    shapes = {name: info.shape for name, info in infos.items()}
    if selection.scaled is Scaled.HOST:
        # A packed weight has another shape; only the host that unpacks it knows the right one.
        packed = {name for name, info in infos.items() if info.dtype in PACKED}
        shapes |= {name: shape for name, shape in expected_shapes(config).items() if name in packed}
    report = check_keys(shapes, config)
    if report.exact:
        return config, ()
    expected = f"expected the tensors of a Wan2.1 T2V, {size_name(config)}"
    return config, (f"{report.describe()}; {expected}. Get the whole, unchanged file.",)


def _official_metadata(file: TensorFile) -> dict[str, str]:
    """The file's metadata; in its table of quantised layers the names are those that `read_checkpoint` gives the
    weights.
    """
    if _QUANTISATION not in file.metadata:
        return dict(file.metadata)
    try:
        table = json.loads(file.metadata[_QUANTISATION])
        layers = {split_name(layer)[1]: how for layer, how in table["layers"].items()}
    except (ValueError, RecursionError, TypeError, KeyError, AttributeError) as error:
        raise PackForcingError(f"{file.path.name} is damaged: its {_QUANTISATION} is not a table of layers.") from error
    return {**file.metadata, _QUANTISATION: json.dumps({**table, "layers": layers})}


def _load(file: TensorFile, names: Mapping[str, str]) -> dict[str, Tensor]:
    loaded = file.load(names.values())
    return {name: loaded[there] for name, there in names.items()}


def _weights(file: TensorFile, selection: _Selection, *, kept: bool, cast: bool) -> dict[str, Tensor]:
    """The weights by official name: with `kept` as stored, scales included, else decoded. `cast` converts plain fp8."""
    if kept:
        return _load(file, {**selection.weights, **selection.scales})
    infos = {name: file.tensors[there] for name, there in selection.weights.items()}
    pairs, _ = pair(infos, {name: file.tensors[there] for name, there in selection.scales.items()})
    weights = _load(file, selection.weights)
    scales = _load(file, {scale: selection.scales[scale] for scale in pairs.values()})
    for name, scale in pairs.items():
        weights[name] = decode(name, weights[name], scales[scale])
    # Without scales, an fp8 weight is just a rounded weight; bfloat16 holds it exactly.
    codes = (torch.float8_e4m3fn, torch.float8_e5m2) if cast else ()
    return {name: weight.to(torch.bfloat16) if weight.dtype in codes else weight for name, weight in weights.items()}


def _inspection(file: TensorFile, infos, kind: Kind, **known) -> Inspection:
    dtypes: Counter[str] = Counter()
    for info in infos:
        dtypes[info.dtype] += info.elements
    return Inspection(
        path=file.path,
        kind=kind.name,
        title=kind.title,
        advice=kind.advice,
        file_bytes=file.file_bytes,
        parameters=sum(dtypes.values()),
        dtypes=dict(dtypes),
        **known,
    )


def _lora_says(file: TensorFile) -> tuple[str, ...]:
    """What the name tells of a LoRA: the family that it belongs with, which decides how its base is sampled."""
    known = recognise(file.path, file.metadata, file.tensors)
    family = known.family
    if family is None or not family.autoregressive:
        return ()
    return (*known.how, f"so it belongs with {family.title}: {family.sampling}")


def _taken_warnings(front: str, others: tuple[str, ...]) -> list[str]:
    if not others:
        return []
    rest = ", ".join(other or "(no top-level key)" for other in others)
    return [f"The file holds several parts: {front or '(no top-level key)'} is used, {rest} ignored."]


def _input_warnings(known: Scaled, scales: Mapping[str, str]) -> list[str]:
    count = sum(name.endswith(OF_INPUTS) for name in scales)
    if not count or known not in (Scaled.HERE, Scaled.ANYWHERE):
        return []
    where = "" if known is Scaled.HERE else "Outside ComfyUI "
    said = (
        f"{where}{count} tensors are not used: scales of activations (input_scale), which decoded weights do not need."
    )
    return [said]


def _dtype_warnings(known: Scaled, infos: list[TensorInfo]) -> list[str]:
    if known is Scaled.HERE:
        return [
            "Its weights are 8-bit with scales that ComfyUI would ignore, so they are converted to bfloat16, twice "
            "as large."
        ]
    if known is Scaled.HOST or not any(info.dtype in FP8 for info in infos):
        return []
    return ["The weights are fp8: outside ComfyUI they are converted to bfloat16 and take twice the memory."]

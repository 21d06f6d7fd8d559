"""Compressor weight files: this project's key names and metadata (listed in this folder's README)."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint.files import TensorFile, TensorInfo, open_tensors
from ..errors import PackForcingError
from ..model.config import WanConfig
from ..model.ops import Ops, TorchOps, build_on_meta
from . import base as bases
from .high_res import FUSIONS, Fusion, HighRes

FORMAT = "packforcing-compressor"
FORMAT_VERSION = 1
GRID_RULE = "ceil(T/2) x max(1, floor(h/8)) x max(1, floor(w/8))"
KEY_PREFIX = "compressor.high_res."
FUSION_PREFIX = "compressor.fusion."
"""Prefix of the tensors that only the fusion "concat" has."""
DTYPES = ("F32", "F16", "BF16")
METADATA_KEYS = ("format_version", "base_model", "base_dim", "frames_per_block", "grid", "trained_with")
BASE_SAMPLES = "base_samples"
FUSION = "fusion"
"""Metadata key of the fusion, one of FUSIONS; files without it use "add"."""
MID_SPAN = "mid_span"
TOLD_KEYS = (
    MID_SPAN,
    "base_family",
    "memory",
    "size",
    "clips",
    "steps",
    "hours",
    "data_seed",
    "licence",
    "score",
)
"""Optional metadata. `score` is JSON with errors relative to the full history. `mid_span` is the number of latent-frame
positions of a compressed block in training; 0 or missing means its true length.
"""

EXPECTED = "expected a compressor file written by `packforcing train`"


@dataclass(frozen=True)
class CompressorInfo:
    """What compressor weights were trained for: the base model's name, the block length in latent frames, and the cache
    policy used in training, as free text.

    `base_samples` are samples of that model's weights (`base.sampled`), if known; `told` has values for TOLD_KEYS.
    """

    base_model: str
    frames_per_block: int
    trained_with: str
    base_samples: Mapping[str, list[float]] | None = None
    told: Mapping[str, str] = field(default_factory=dict)

    @property
    def mid_span(self) -> float:
        """Latent-frame positions of a compressed block in training; 0: its true length."""
        return _span(self.told)


class LoadedCompressor(NamedTuple):
    """The branch with its weights, frozen, and the training information in its file."""

    high_res: HighRes
    info: CompressorInfo


def save_compressor(path: str | PathLike[str], high_res: HighRes, info: CompressorInfo) -> None:
    """Writes the weights, in their dtype, and the metadata. An existing file is replaced in one step.

    Raises PackForcingError if the folder does not exist or cannot be written to.
    """
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "format_version": str(FORMAT_VERSION),
        "base_model": info.base_model,
        "base_dim": str(high_res.dim),
        "frames_per_block": str(info.frames_per_block),
        "grid": GRID_RULE,
        "trained_with": info.trained_with,
        FUSION: high_res.fusion,
        **info.told,
    }
    if info.base_samples:
        metadata[BASE_SAMPLES] = json.dumps(info.base_samples)
    tensors = {_file_key(name): tensor.detach().cpu().contiguous() for name, tensor in high_res.state_dict().items()}
    partial = path.with_name(path.name + ".partial")
    try:
        save_file(tensors, partial, metadata)
        os.replace(partial, path)
    except (OSError, SafetensorError) as error:
        raise PackForcingError(f"The compressor cannot be written to {path}: {error}.") from error


def load_compressor(
    path: str | PathLike[str],
    model_config: WanConfig,
    frames_per_block: int | None,
    *,
    ops: Ops = TorchOps,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    base: Mapping[str, Tensor] | None = None,
) -> LoadedCompressor:
    """The high-resolution branch for a model of `model_config` and blocks of `frames_per_block` latent frames. With
    None the caller compares the block length with `info.frames_per_block` later.

    `device` and `dtype` None keep the file's. `base` holds the model's weights by official name, if available. Raises
    PackForcingError for a file of another kind, project or newer version; for another width, block length or `base`;
    and for tensors that do not match exactly, or not the fusion in the metadata.
    """
    file = open_tensors(path)
    _refuse_foreign(file)
    metadata = _require_metadata(file)
    _require_trained_for(file, metadata, model_config.dim, frames_per_block)
    samples = bases.parse(metadata[BASE_SAMPLES]) if BASE_SAMPLES in metadata else None
    if samples and base is not None:
        _require_same_base(file, samples, bases.sampled(base))
    fusion = _fusion(file)
    high_res = build_on_meta(lambda: HighRes(model_config.dim, ops, fusion))
    keys = {name: _file_key(name) for name in high_res.state_dict()}
    shapes = {keys[name]: tuple(tensor.shape) for name, tensor in high_res.state_dict().items()}
    _require_exact_tensors(file, shapes)
    tensors = file.load(keys.values())
    weights = {name: tensors[key].to(device=device, dtype=dtype) for name, key in keys.items()}
    high_res.load_state_dict(weights, assign=True)
    told = {key: metadata[key] for key in TOLD_KEYS if key in metadata}
    own_frames = _count(file, "frames_per_block")
    info = CompressorInfo(metadata["base_model"], own_frames, metadata["trained_with"], samples, told)
    return LoadedCompressor(high_res.requires_grad_(False).eval(), info)


def described(path: str | PathLike[str]) -> Iterator[tuple[str, str]]:
    """(field, value) of everything that a compressor file says about itself, for people; tensors are not read.

    Raises PackForcingError for a file of another kind, project or newer version, or whose tensors contradict its
    fusion.
    """
    file = open_tensors(path)
    _refuse_foreign(file)
    metadata, fusion = _require_metadata(file), _fusion(file)
    yield "trained for", fits(metadata)
    yield "fusion", f"{fusion}: {FUSIONS[fusion]}"
    yield "trained with", metadata["trained_with"]
    yield from ((key.replace("_", " "), metadata[key]) for key in TOLD_KEYS if key in metadata)
    known = bases.parse(metadata.get(BASE_SAMPLES, ""))
    yield "base", "checked by its weights; other models are refused" if known else "checked by its width only"


def trained_span(path: str | PathLike[str]) -> float:
    """`CompressorInfo.mid_span` of a file, without reading its tensors."""
    file = open_tensors(path)
    _refuse_foreign(file)
    return _span(file.metadata)


def _span(told: Mapping[str, str]) -> float:
    try:
        return float(told.get(MID_SPAN, "0"))
    except ValueError as error:
        raise PackForcingError(f"The compressor's metadata has mid_span {told[MID_SPAN]!r}; {EXPECTED}.") from error


def fits(metadata: Mapping[str, str]) -> str:
    """The model and block length that the compressor with this metadata fits."""
    family = f" ({metadata['base_family']})" if metadata.get("base_family") else ""
    width, frames = metadata["base_dim"], metadata["frames_per_block"]
    return f"{metadata['base_model']}{family}, width {width}, blocks of {frames} latent frames"


def _file_key(name: str) -> str:
    """`layers.N.weight` in the module -> `compressor.high_res.N.weight` in the file; `gate` and the names in `join` ->
    `compressor.fusion.`.
    """
    return KEY_PREFIX + name.removeprefix("layers.") if name.startswith("layers.") else FUSION_PREFIX + name


def _fusion(file: TensorFile) -> Fusion:
    """The fusion of the file; its metadata and tensors must agree on it."""
    said = file.metadata.get(FUSION, "add")
    if said not in FUSIONS:
        raise PackForcingError(
            f"{file.path.name} is a compressor of fusion {said!r}; this version of PackForcing knows "
            f"{', '.join(FUSIONS)}. Update PackForcing."
        )
    found = next((key for key in file.tensors if key.startswith(FUSION_PREFIX)), None)
    if (found is not None) == (said == "concat"):
        return said
    says = f"says fusion '{said}'" if FUSION in file.metadata else "names no fusion, which means 'add'"
    has = (
        f"has {found}, which belongs to 'concat'" if found else f"has no tensor {FUSION_PREFIX}..., which 'concat' has"
    )
    raise PackForcingError(f"{file.path.name} contradicts itself: its metadata {says}, but it {has}; {EXPECTED}.")


def _refuse_foreign(file: TensorFile) -> None:
    name = file.path.name
    if any("pack_compressor." in key for key in file.tensors):
        raise PackForcingError(
            f"{name} holds the compressor of another PackForcing project (pack_compressor.net), whose layers are not "
            f"ours: {EXPECTED}. Its transformer can be loaded as a model and used zero-shot."
        )
    if file.metadata.get("format") == FORMAT:
        return
    some = ", ".join(list(file.tensors)[:3]) or "nothing"
    if any(key.startswith(KEY_PREFIX) for key in file.tensors):
        problem = f"has our keys, but its metadata lacks format '{FORMAT}': another program saved it"
    else:
        problem = f"is no compressor (it has {some} ...)"
    raise PackForcingError(f"{name} {problem}; {EXPECTED}.")


def _require_metadata(file: TensorFile) -> Mapping[str, str]:
    missing = [key for key in METADATA_KEYS if key not in file.metadata]
    # Checked first: a newer version may have dropped fields, which is not damage.
    if "format_version" not in missing and _count(file, "format_version") > FORMAT_VERSION:
        raise PackForcingError(
            f"{file.path.name} is a compressor of format version {file.metadata['format_version']}; this version of "
            f"PackForcing reads up to {FORMAT_VERSION}. Update PackForcing."
        )
    if missing:
        raise PackForcingError(f"{file.path.name} is missing {', '.join(missing)} in its metadata; {EXPECTED}.")
    return file.metadata


def _require_trained_for(file: TensorFile, metadata: Mapping[str, str], dim: int, frames: int | None) -> None:
    name, base = file.path.name, metadata["base_model"]
    trained_dim, trained_frames = _count(file, "base_dim"), _count(file, "frames_per_block")
    if trained_dim != dim:
        raise PackForcingError(
            f"{name} is a compressor for a model of width {trained_dim} ({base}); this model's width is {dim}. "
            "Load the compressor that was trained with this model, or none (zero-shot)."
        )
    if frames is not None and trained_frames != frames:
        raise PackForcingError(
            f"{name} was trained with blocks of {trained_frames} latent frames, but this render has blocks of "
            f"{frames}. Set frames_per_block to {trained_frames}, or load no compressor (zero-shot)."
        )
    if metadata["grid"] != GRID_RULE:
        raise PackForcingError(
            f"{name} was trained for the token grid '{metadata['grid']}'; this version of PackForcing makes "
            f"'{GRID_RULE}'. Load another compressor, or none (zero-shot)."
        )


def _require_same_base(file: TensorFile, trained: Mapping[str, list[float]], given: Mapping[str, list[float]]) -> None:
    """Raises PackForcingError if the weights differ by more than rounding to another dtype explains."""
    apart = bases.difference(trained, given)
    if apart is None or apart <= (bases.DOUBTFUL if bases.was_fp8(given) else bases.SAME):
        return
    raise PackForcingError(
        f"{file.path.name} was trained for {fits(file.metadata)}; this model has the same sizes but other weights "
        f"(they differ by {100 * apart:.2g}%). Load it with that model, load none (zero-shot), or train one for this "
        "model: the help of PackForcing Model Loader says how."
    )


def _count(file: TensorFile, key: str) -> int:
    value = file.metadata[key]
    if not re.fullmatch("[1-9][0-9]{0,8}", value):
        raise PackForcingError(
            f"{file.path.name} says {key} is {value!r} in its metadata; expected a whole number above 0. "
            "The file is damaged: download it again."
        )
    return int(value)


def _require_exact_tensors(file: TensorFile, expected: Mapping[str, tuple[int, ...]]) -> None:
    problems = [f"missing {key}" for key in expected if key not in file.tensors]
    problems += [f"unexpected {key}" for key in file.tensors if key not in expected]
    problems += [_misfit(key, file.tensors[key], shape) for key, shape in expected.items() if key in file.tensors]
    problems = [problem for problem in problems if problem]
    dtypes = sorted({file.tensors[key].dtype for key in expected if key in file.tensors})
    if len(dtypes) > 1 or set(dtypes) - set(DTYPES):
        problems.append(f"dtypes {', '.join(dtypes)} instead of one of {', '.join(DTYPES)}")
    if problems:
        more = f" and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise PackForcingError(f"{file.path.name} does not fit: {'; '.join(problems[:5])}{more}; {EXPECTED}.")


def _misfit(key: str, given: TensorInfo, shape: tuple[int, ...]) -> str:
    return f"{key} is {list(given.shape)} instead of {list(shape)}" if given.shape != shape else ""

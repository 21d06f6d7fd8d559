"""The sizes of a Wan2.1 text-to-video transformer: presets, and reading them from a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import PackForcingError

# Every Wan loader assumes width / 128 heads, since the file does not state their number.
HEAD_DIM = 128
PATCH_SIZE = (1, 2, 2)

# Tensors that only a related model has, and what that model is.
FOREIGN_KEYS = {
    "img_emb.": "an image-to-video (I2V) Wan",
    "vace_patch_embedding.": "a VACE Wan",
    "control_adapter.": "a camera-control Wan",
    "casual_audio_encoder.": "a speech-to-video Wan",
    "audio_proj.": "a HuMo Wan",
    "face_adapter.": "a Wan Animate",
    "patch_embedding_mask.": "a SCAIL Wan",
    "patch_embedding_pose.": "a SCAIL Wan",
    "patch_embedding_global.": "a WanDancer",
    "ref_conv.": "a Fun-Control Wan",
}

# The tensors that the sizes are read from.
SIZE_KEYS = (
    "patch_embedding.weight",
    "text_embedding.0.weight",
    "time_embedding.0.weight",
    "blocks.0.ffn.0.weight",
    "head.head.weight",
    "head.modulation",
)

# The largest Wan2.1 has 40 layers. A file that claims more was made to exhaust memory.
MAX_LAYERS = 512

EXPECTED = "expected a Wan2.1 text-to-video (T2V) transformer"


@dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer: `dim` is its width, `num_layers` counts what files call `blocks.N`."""

    dim: int
    ffn_dim: int
    num_layers: int
    num_heads: int
    in_dim: int = 16
    out_dim: int = 16
    text_dim: int = 4096
    freq_dim: int = 256
    patch_size: tuple[int, int, int] = PATCH_SIZE
    text_len: int = 512
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.dim % self.num_heads:
            raise PackForcingError(
                f"Got {self.num_heads} heads for a width of {self.dim}: the width must be a multiple of the number "
                "of heads."
            )

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    @classmethod
    def from_state_dict(cls, shapes: Mapping[str, Any]) -> WanConfig:
        """Sizes from official key names; values are tensors or shapes (tuples, lists, torch.Size).

        Raises PackForcingError for a file that is not a Wan text-to-video transformer, or whose width is not a multiple
        of 128.
        """
        sizes = {name: _shape(value) for name, value in shapes.items()}
        _refuse_foreign(sizes)
        patch = sizes["patch_embedding.weight"]
        dim, in_dim, patch_size = patch[0], patch[1], patch[2:]
        if patch_size != PATCH_SIZE:
            raise PackForcingError(f"Got patches of {patch_size}; {EXPECTED}, whose patches are {PATCH_SIZE}.")
        if in_dim != 16:
            kind = "an image-to-video (I2V) Wan" if in_dim == 36 else "another variant of Wan"
            raise PackForcingError(f"Got a model with {in_dim} input channels, {kind}; {EXPECTED}, which has 16.")
        if dim % HEAD_DIM:
            raise PackForcingError(
                f"Got a width of {dim} (patch_embedding.weight); {EXPECTED}, whose width is a multiple of {HEAD_DIM}."
            )
        return cls(
            dim=dim,
            ffn_dim=sizes["blocks.0.ffn.0.weight"][0],
            num_layers=_count_layers(sizes),
            num_heads=dim // HEAD_DIM,
            in_dim=in_dim,
            out_dim=sizes["head.head.weight"][0] // math.prod(patch_size),
            text_dim=sizes["text_embedding.0.weight"][1],
            freq_dim=sizes["time_embedding.0.weight"][1],
            patch_size=patch_size,
        )


WAN_SIZES = {
    "1.3B": WanConfig(dim=1536, ffn_dim=8960, num_layers=30, num_heads=12),
    "14B": WanConfig(dim=5120, ffn_dim=13824, num_layers=40, num_heads=40),
}


def _refuse_foreign(sizes: Mapping[str, tuple[int, ...]]) -> None:
    for prefix, kind in FOREIGN_KEYS.items():
        found = next((name for name in sizes if name.startswith(prefix)), None)
        if found:
            raise PackForcingError(f"Got {kind} (it has {found}); {EXPECTED}. Choose the T2V file of the model.")
    missing = [name for name in SIZE_KEYS if name not in sizes]
    if missing:
        some = ", ".join(list(sizes)[:3]) or "nothing"
        raise PackForcingError(f"Not a Wan transformer: no {', '.join(missing)} (the file has {some} ...); {EXPECTED}.")
    ranks = {"patch_embedding.weight": 5, "head.modulation": 3}
    for name in SIZE_KEYS:
        if len(sizes[name]) != ranks.get(name, 2) or 0 in sizes[name]:
            raise PackForcingError(
                f"Got {name} of shape {list(sizes[name])}; {EXPECTED}. The file is damaged or of another model."
            )


def _count_layers(sizes: Mapping[str, Any]) -> int:
    """The number of layers, counted by name: a file with one large layer number must not cost memory."""
    found = dict.fromkeys(name.split(".", 2)[1] for name in sizes if name.startswith("blocks."))
    expected = {str(layer) for layer in range(len(found))}
    stray = next((layer for layer in found if layer not in expected), None)
    if stray is not None:
        raise PackForcingError(
            f"Got blocks.{stray[:40]} among {len(found)} layers; {EXPECTED}, whose layers are numbered from 0 without "
            "gaps. The file is damaged or of another model."
        )
    if len(found) > MAX_LAYERS:
        raise PackForcingError(f"Got {len(found):,} layers; {EXPECTED} with at most {MAX_LAYERS} layers.")
    return len(found)


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.shape if isinstance(value, torch.Tensor) else value)

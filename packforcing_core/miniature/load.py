"""Loads the miniature's weights from the package: transformer, VAE, text encoder and, if shipped, the compressor.

    model, vae, words = load_model(), load_vae(), load_text()
    context = words(["a red circle and a blue square bounce on a dark background"])    # [1, 24, 128]

The files have the names and formats of large ones, so native loaders read them too.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..cache.config import MINIATURE_MEMORY
from ..checkpoint.build import build_model
from ..checkpoint.families import FAMILIES
from ..checkpoint.files import TensorFile, open_tensors
from ..checkpoint.load import Checkpoint, read_checkpoint
from ..compressor import weights as compressors
from ..errors import PackForcingError
from ..model.causal import CausalWan
from ..model.ops import Ops, TorchOps
from ..text.words import FIRST_WORD, WordEncoder
from ..vae import load as vaes
from ..vae.wan_vae import WanVAE
from .world import HEIGHT, WIDTH, WORDS

WEIGHTS = Path(__file__).with_name("weights")
MODEL, VAE, TEXT, COMPRESSOR = (WEIGHTS / f"{part}.safetensors" for part in ("wan", "vae", "text", "compressor"))
FAMILY = FAMILIES["miniature"]
SIZE = (WIDTH, HEIGHT)
"""Pixels, width first: the only size it was trained at."""
MEMORY = replace(MINIATURE_MEMORY, selector="cosine+newest", top_k_blocks=6)
"""The KV cache policy for videos: that of the training, with the selector and the number of selected blocks that recall
most (`laboratory/study`).
"""
PROMPT = "a red circle at the top left bounces on a dark background"


def read_model(path: Path = MODEL) -> Checkpoint:
    """The transformer's weights, or those at `path`, with the length of its texts, which the file does not state."""
    read, texts = read_checkpoint(_shipped(path)), _open(TEXT).tensors["places"].shape[0]
    return replace(read, config=replace(read.config, text_len=texts))


def fast_dtype() -> torch.dtype:
    """The dtype in which this CPU runs the miniature fastest: bfloat16 if it has units for it, else float32.

    In bfloat16 a video takes about 0.6 of the time. Its latents differ by 0.6% of their standard deviation, after ten
    blocks as after one.
    """
    # Older versions of torch do not tell; float32 always works.
    told = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return torch.bfloat16 if any(told.get(unit) for unit in ("avx512_bf16", "amx_bf16")) else torch.float32


def load_model(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu", path: Path = MODEL) -> CausalWan:
    """The transformer, or another of its size at `path`, running in `dtype`."""
    return build_model(read_model(path), torch.device(device), dtype)


def read_vae() -> dict[str, Tensor]:
    """The VAE's weights under the official names."""
    file = _open(VAE)
    return file.load(file.tensors)


def load_vae(dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> WanVAE:
    """The VAE, running in `dtype`."""
    return vaes.load_vae(read_vae(), device=device, dtype=dtype)


def load_text(path: Path = TEXT) -> WordEncoder:
    """The text encoder in float32, with the vocabulary that its weights were trained with."""
    file = _open(path)
    tensors = {name: tensor.float() for name, tensor in file.load(file.tensors).items()}
    rows, half = tensors["words"].shape
    # New words are added at the end, so older weights know the first words.
    encoder = WordEncoder(WORDS[: rows - FIRST_WORD], 2 * half, len(tensors["places"]))
    encoder.load_state_dict(tensors)
    return encoder.requires_grad_(False).eval()


def load_compressor(
    path: Path = COMPRESSOR,
    *,
    ops: Ops = TorchOps,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> compressors.LoadedCompressor | None:
    """The trained compressor, or another at `path`; None if the package has none, and the policy then runs
    zero-shot.
    """
    if path == COMPRESSOR and not path.exists():
        return None
    frames = FAMILY.frames_per_block
    loaded = compressors.load_compressor(path, read_model().config, frames, ops=ops, device=device, dtype=dtype)
    told = {compressors.MID_SPAN: str(MEMORY.mid_span), **loaded.info.told}
    return loaded._replace(info=replace(loaded.info, told=told))


def _open(path: Path) -> TensorFile:
    return open_tensors(_shipped(path))


def _shipped(path: Path) -> Path:
    if not path.exists():
        raise PackForcingError(f"{path}, a part of the miniature, is missing. Install the package again.")
    return path

"""umT5 outside ComfyUI, through `transformers`, from a local folder only."""

from __future__ import annotations

import html
import json
import logging
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import PackForcingError
from .context import TEXT_DIM, TEXT_LEN, check_width, pad_context

TOKENIZER_FILES = ("tokenizer.json", "spiece.model", "sentencepiece.bpe.model")
EXPECTED_FOLDER = "expected a local transformers folder of google/umt5-xxl (config.json, weights, tokenizer)"


def clean_prompt(prompt: str) -> str:
    """Resolves HTML entities (twice, as Wan does) and collapses white space."""
    return " ".join(html.unescape(html.unescape(prompt)).split())


def encode_prompt(
    prompt: str,
    folder: str | PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    text_dim: int = TEXT_DIM,
) -> Tensor:
    """The embeddings of one prompt, [1, 512, text_dim] in `dtype` on `device`, zero after the prompt's tokens.

    `folder` holds a umT5 encoder and its tokenizer as saved by `transformers`, together or in the subfolders
    text_encoder and tokenizer of a diffusers folder. Nothing is downloaded. Prompts are cut at 512 tokens. The encoder
    is freed on return. Raises PackForcingError if the folder, its tokenizer or `transformers` is missing, or if the
    encoder's width is not `text_dim`.
    """
    return encode_prompts([prompt], folder, device, dtype, text_dim)[0]


def encode_prompts(
    prompts: Sequence[str],
    folder: str | PathLike[str],
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    text_dim: int = TEXT_DIM,
) -> list[Tensor]:
    """`encode_prompt` for several prompts; the encoder is loaded once, and equal prompts share their embeddings."""
    encoder_folder, tokenizer_folder = _find_folders(Path(folder))
    _check_config(encoder_folder, text_dim)
    tokenizer = _load_tokenizer(tokenizer_folder)
    encoder = _load_encoder(encoder_folder, dtype).to(device)
    contexts = {prompt: _encoded(prompt, tokenizer, encoder) for prompt in dict.fromkeys(prompts)}
    return [contexts[prompt] for prompt in prompts]


def _encoded(prompt: str, tokenizer, encoder) -> Tensor:
    # Only the prompt's own tokens are encoded: masked padding has no effect on them.
    batch = tokenizer(clean_prompt(prompt), max_length=TEXT_LEN, truncation=True, return_tensors="pt")
    whole = len(tokenizer(clean_prompt(prompt), verbose=False).input_ids)
    if whole > TEXT_LEN:
        logging.getLogger(__name__).warning(
            "A prompt of %d tokens is cut: the text encoder reads %d, about the first %d characters.",
            *(whole, TEXT_LEN, len(prompt) * TEXT_LEN // whole),
        )
    batch = batch.to(encoder.device)
    with torch.inference_mode():
        hidden = encoder(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
    # Padded outside inference mode, so that the result is an ordinary tensor, usable in training.
    return pad_context(hidden)


def _find_folders(folder: Path) -> tuple[Path, Path]:
    """(encoder's folder, tokenizer's folder)."""
    if not folder.is_dir():
        raise PackForcingError(f"{folder} is not a folder; {EXPECTED_FOLDER}.")
    if (folder / "text_encoder").is_dir():
        encoder, tokenizer = folder / "text_encoder", folder / "tokenizer"
    else:
        encoder = tokenizer = folder
    if not any((tokenizer / name).is_file() for name in TOKENIZER_FILES):
        raise PackForcingError(
            f"{tokenizer} has no tokenizer (one of {', '.join(TOKENIZER_FILES)}); {EXPECTED_FOLDER}."
        )
    return encoder, tokenizer


def _check_config(folder: Path, text_dim: int) -> None:
    config = folder / "config.json"
    if not config.is_file():
        raise PackForcingError(f"{folder} has no config.json; {EXPECTED_FOLDER}.")
    try:
        sizes = json.loads(config.read_text(encoding="utf-8"))
        model_type, width = sizes["model_type"], sizes["d_model"]
    except (ValueError, KeyError, TypeError) as error:
        raise PackForcingError(f"{config} does not describe a umT5 ({error!r}); {EXPECTED_FOLDER}.") from error
    if model_type != "umt5":
        raise PackForcingError(f"{folder} holds a model of type {model_type!r}; {EXPECTED_FOLDER}.")
    check_width(width, text_dim, str(folder))


def _load_tokenizer(folder: Path):
    transformers = _import_transformers()
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # The tokenizer library raises no specific error for a damaged file.
        raise PackForcingError(f"The tokenizer in {folder} cannot be read: {error}") from error


def _load_encoder(folder: Path, dtype: torch.dtype):
    transformers = _import_transformers()
    try:
        encoder, loading = transformers.UMT5EncoderModel.from_pretrained(
            folder, local_files_only=True, torch_dtype=dtype, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise PackForcingError(f"The text encoder in {folder} cannot be read: {error}") from error
    # transformers fills missing weights with random numbers; only the input embedding may be stored as `shared`.
    missing = sorted(set(loading["missing_keys"]) - {"encoder.embed_tokens.weight"})
    if missing:
        raise PackForcingError(
            f"The text encoder in {folder} is missing {', '.join(missing[:3])} ...; {EXPECTED_FOLDER}."
        )
    return encoder.eval()


def _import_transformers():
    try:
        import transformers
    except ImportError as error:
        raise PackForcingError(
            "Encoding prompts outside ComfyUI needs transformers: pip install transformers sentencepiece, "
            "or pass saved prompt embeddings with --context."
        ) from error
    return transformers

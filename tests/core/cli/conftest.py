from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file

from tests.checkpoints import (
    SMALL,
    truncate,
    write_context,
    write_family,
    write_peft_lora,
    write_stock_wan,
    write_umt5,
)
from tests.vaes import TINY, random_vae


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of small checkpoints, to be read only."""
    folder = tmp_path_factory.mktemp("models")
    write_family(folder, "self-forcing")
    write_family(folder, "rolling-forcing")
    write_family(folder, "causal-forcing-long")
    write_stock_wan(folder / "plain.safetensors", SMALL, causal=False)
    save_file(random_vae(TINY).state_dict(), folder / "vae.safetensors")
    write_context(folder / "context.safetensors", text_dim=64)
    write_peft_lora(folder / "lora.pt")
    shutil.copy(folder / "self_forcing_dmd.pt", folder / "cut.pt")
    truncate(folder / "cut.pt")
    (folder / "a_file").write_text("not a folder", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def umt5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small text encoder; writing it imports transformers, for seconds."""
    return write_umt5(tmp_path_factory.mktemp("umt5"))

"""The saved state of a training: safetensors through torch.distributed.checkpoint, for any number of ranks.

Every rank writes its own shard, and any number of ranks can read them. Only tensors are read, so a folder from an
untrusted source is safe to open. A state is complete once its folder has its final name; a crash during a write leaves
the previous state intact.
"""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter

from ...errors import PackForcingError
from . import ranks

PART = ".part"
STATE = re.compile(r"state-(\d+)")


def saved_step(folder: Path) -> int | None:
    """Returns the number of steps done in the newest complete state of `folder`; None if there is none."""
    return max(_steps(folder), default=None)


def save(tensors: Mapping[str, Tensor], folder: Path, done: int) -> None:
    """Writes the state after `done` steps, then removes the older ones. All ranks must call it."""
    part = folder / f"state-{done:08d}{PART}"
    if ranks.rank() == 0 and part.exists():
        shutil.rmtree(part)
    ranks.wait_for_all()
    with _quiet():
        dcp.save(
            dict(tensors),
            storage_writer=HuggingFaceStorageWriter(str(part), save_distributed=True),
            no_dist=ranks.ranks() == 1,
        )
    ranks.wait_for_all()
    if ranks.rank() == 0:
        older = _steps(folder)
        path = _path(folder, done)
        if path.exists():
            shutil.rmtree(path)
        os.replace(part, path)
        for step in older:
            if step != done:
                shutil.rmtree(_path(folder, step))
    ranks.wait_for_all()


def load(tensors: Mapping[str, Tensor], folder: Path, done: int) -> None:
    """Fills `tensors` in place with the state after `done` steps. All ranks must call it.

    Raises PackForcingError if the state has other networks or optimisers, or is damaged.
    """
    path = _path(folder, done)
    try:
        reader = HuggingFaceStorageReader(str(path))
        with _quiet():
            saved = set(reader.read_metadata().state_dict_metadata)
            if saved != set(tensors):
                odd = sorted(saved ^ set(tensors))
                raise PackForcingError(
                    f"{path} belongs to another training: {', '.join(odd[:3])} ... "
                    f"{'is' if odd[0] in saved else 'are not'} "
                    "in it. Resume with the same stage, size and options, or choose another folder."
                )
            dcp.load(dict(tensors), storage_reader=reader, no_dist=ranks.ranks() == 1)
    except (SafetensorError, OSError, dcp.api.CheckpointException, ValueError) as error:
        if isinstance(error, PackForcingError):
            raise
        raise PackForcingError(
            f"{path} cannot be read ({error}). It is damaged, or for networks of another size."
        ) from error


def _steps(folder: Path) -> list[int]:
    found = (STATE.fullmatch(path.name) for path in folder.glob("state-*"))
    return [int(match.group(1)) for match in found if match]


def _path(folder: Path, done: int) -> Path:
    return folder / f"state-{done:08d}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses PyTorch's warning that a run of one process is not distributed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield

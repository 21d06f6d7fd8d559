"""The ranks of a distributed run: each one's share of a batch, and reductions over all of them.

A single process is a run with one rank. Several are started by torchrun, which sets the environment variables that are
read here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from ...errors import PackForcingError


def join(device: torch.device) -> torch.device:
    """Initialises the process group of a torchrun, if there is one; returns this rank's own device of
    the given type.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return device
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def leave() -> None:
    """Destroys the process group that `join` created."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> range:
    """Returns this rank's indices in a global batch of size `batch`.

    Raises PackForcingError unless all ranks have the same number of them, because otherwise the mean of the ranks'
    means would not be the batch's mean.
    """
    if batch % ranks():
        raise PackForcingError(
            f"A batch of {batch} cannot be shared by {ranks()} ranks; choose a multiple of the number of ranks."
        )
    return range(rank(), batch, ranks())


def turns(count: int) -> range:
    """Returns this rank's indices among `count` work items. Ranks may have different numbers of items."""
    return range(rank(), count, ranks())


def wait_for_all() -> None:
    """A barrier: returns when every rank has called it."""
    if ranks() > 1:
        dist.barrier()


def mean_figures(figures: Mapping[str, float], device: torch.device) -> dict[str, float]:
    """Returns every figure's mean over all ranks. The names must be the same on all ranks."""
    if ranks() == 1:
        return dict(figures)
    values = torch.tensor(list(figures.values()), dtype=torch.float64, device=device)
    dist.all_reduce(values)
    return dict(zip(figures, (values / ranks()).tolist(), strict=True))


def average(tensors: Iterable[Tensor | None]) -> None:
    """Replaces every tensor by its mean over all ranks, in one all-reduce."""
    present = [tensor for tensor in tensors if tensor is not None]
    if ranks() == 1 or not present:
        return
    flat = torch.cat([tensor.flatten() for tensor in present])
    dist.all_reduce(flat)
    flat /= ranks()
    for tensor, mean in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
        tensor.copy_(mean.view_as(tensor))

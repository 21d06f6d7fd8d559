"""What each process of a distributed run does: its share of a batch, and the mean of all gradients.

One process alone is the same as a run of one rank. Started by torchrun, which sets the environment that is read here.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor


def join() -> None:
    """Joins the other processes of a torchrun, if there are any."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def share(batch: int) -> range:
    """The indices of this rank among the `batch` of a step."""
    return range(rank(), batch, ranks())


def average(tensors: Iterable[Tensor | None]) -> None:
    """Replaces every tensor by its mean over all ranks, in one message."""
    present = [tensor for tensor in tensors if tensor is not None]
    if ranks() == 1 or not present:
        return
    flat = torch.cat([tensor.flatten() for tensor in present])
    dist.all_reduce(flat)
    flat /= ranks()
    for tensor, mean in zip(present, flat.split([tensor.numel() for tensor in present]), strict=True):
        tensor.copy_(mean.view_as(tensor))

"""The cached frames of a causal network between calls, kept here so that the network itself has no state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol, TypeGuard, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import fast

# PyTorch (aten, Convolution.cpp) computes a float32 convolution on a CPU with oneDNN if the product of its input's
# first four sizes exceeds this. Otherwise it unfolds the input, which in 3-D takes 27 times its memory.
UNFOLDED_SIZE = 20480


def memory_format(device: torch.device) -> torch.memory_format:
    """The memory layout of video tensors [B, C, T, H, W] throughout the network.

    In channels-last, every split along time is a view, tensor cores need no conversion, and a decode on a CPU takes 15%
    less time (240x416 pixels, float32). On Apple's MPS the layout of the weights is kept.
    """
    return torch.channels_last_3d if device.type in ("cpu", "cuda") else torch.contiguous_format


class Activation(Protocol):
    """A norm with its SiLU before a convolution: `layers.RMSNorm`."""

    def activated(self, x: Tensor) -> Tensor: ...

    def activate_into(self, x: Tensor, out: Tensor, tail: Tensor, lacks: Tensor | None = None) -> None: ...


class CausalState:
    """For each causal convolution, the last frames of its input, which its next output depends on.

    A convolution over time with kernel k and stride s needs the last k - s frames (2 for the usual 3 and 1). These
    tails have a fixed length, so a call with one frame is like any other. Tails are replaced, never written to, so a
    copy of the mapping is an independent state.
    """

    def __init__(self) -> None:
        self.tails: dict[nn.Module, Tensor] = {}

    def started(self, conv: nn.Module) -> bool:
        return conv in self.tails

    def start(self, conv: nn.Module, frame: Tensor | None, like: Tensor) -> None:
        """Gives `conv` its history before its first call: one frame, or zeros of the shape of `like` for None."""
        self.tails[conv] = _zeros(like, lookback(conv)) if frame is None else frame.clone()

    def convolve(
        self,
        conv: nn.Module,
        x: Tensor,
        norm: Activation | None = None,
        *,
        lacks: Tensor | None = None,
        biased: bool = True,
    ) -> Tensor:
        """Applies `conv` (without padding in time) to x [B, C, T, H, W], activated by `norm`, with its tail before it.
        T is a multiple of its stride.

        The first frame of a video is preceded by zeros. Without gradients, the activated input is written directly
        after the tail, so nothing is concatenated. With gradients, and frame by frame, `_convolve_joined` is used.

        If `may_lack_bias`, a bias can be left to the next operation, which saves a pass over the tensor: `biased` is
        false for an output without it, and `lacks` is the bias that x lacks.
        """
        depth, frames = lookback(conv), x.shape[2]
        first = conv not in self.tails and frames == 1 and is_plain(conv)
        if first or torch.is_grad_enabled() or splits_time(conv, x, depth + frames):
            return self._convolve_joined(conv, x if norm is None else norm.activated(x))
        padded = _empty(x, depth + frames)
        padded[:, :, :depth] = self.tails.pop(conv) if conv in self.tails else 0
        kept = _empty(x, depth)  # After the old tail is freed.
        newest = min(depth, frames)
        fresh, own = padded[:, :, depth:], kept[:, :, depth - newest :]
        if norm is None:
            fresh.copy_(x)
            own.copy_(x[:, :, frames - newest :])
        else:
            norm.activate_into(x, fresh, own, lacks)
        del x  # Frees the caller's tensor: one frame less at the peak.
        if newest < depth:
            kept[:, :, : depth - newest] = padded[:, :, frames:depth]
        self.tails[conv] = kept
        return run_conv(conv, padded, biased)

    def may_lack_bias(self, conv: nn.Module, x: Tensor) -> bool:
        """Whether `conv` over frames like those of x can leave its bias to the next operation, because a kernel adds
        it.
        """
        if torch.is_grad_enabled() or not self.started(conv):
            return False
        return is_plain(conv) and conv.bias is not None and fast.activates(x)

    def _convolve_joined(self, conv: nn.Module, x: Tensor) -> Tensor:
        depth = lookback(conv)
        if conv not in self.tails and x.shape[2] == 1 and is_plain(conv):
            self.tails[conv] = torch.cat((_zeros(x, depth - 1), x), dim=2)
            return convolve_first(conv, x)
        tail = self.tails.pop(conv) if conv in self.tails else _zeros(x, depth)
        if splits_time(conv, x, depth + x.shape[2]):
            known = x if x.shape[2] >= depth else torch.cat((tail[:, :, x.shape[2] - depth :], x), dim=2)
            self.tails[conv] = known if _is_tail(known, depth) else known[:, :, -depth:].clone()
            # One layout for every tail: kernels for other layouts sum in another order.
            layout = torch.channels_last
            frames = [frame.contiguous(memory_format=layout) for frame in (*tail.unbind(2), *x.unbind(2))]
            return convolve_by_frames(conv, frames)
        padded = torch.cat((tail, x), dim=2)
        kept = x if _is_tail(x, depth) else None
        del x  # Frees the caller's tensor: one frame less at the peak.
        # No copy, except after the few kernels that lose the layout.
        padded = padded.contiguous(memory_format=memory_format(padded.device))
        self.tails[conv] = padded[:, :, -depth:].clone() if kept is None else kept
        return run_conv(conv, padded)


def splits_time(conv: nn.Module, x: Tensor, frames: int) -> TypeGuard[nn.Conv3d]:
    """Whether `conv` over `frames` frames like those of x is computed as 2-D convolutions, because PyTorch would
    unfold.

    Only for plain modules, whose weights may be read; a module that a host replaced is called instead.
    """
    if x.device.type != "cpu" or x.dtype != torch.float32 or not is_plain(conv):
        return False
    return math.prod((*x.shape[:2], frames, x.shape[3])) <= UNFOLDED_SIZE


def run_conv(conv: nn.Module, x: Tensor, biased: bool = True) -> Tensor:
    """`conv` over `x`; a plain one without its bias if not `biased`.

    PyTorch 2.9 and 2.10 do not use some versions of cuDNN for half-precision 3-D convolutions and unfold them, which
    takes many times the memory. There cuDNN is called directly, as ComfyUI does.
    """
    if not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and is_plain(conv) and _cudnn_is_avoided()):
        if biased or not is_plain(conv):
            return conv(x)
        return F.conv3d(x, conv.weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)
    padding = cast("tuple[int, ...]", conv.padding)  # Never a string such as "same" in this network.
    sizes = padding, conv.stride, conv.dilation
    made = torch.cudnn_convolution(x, conv.weight, *sizes, conv.groups, False, False, True)
    return made if conv.bias is None or not biased else made.add_(conv.bias.view(1, -1, 1, 1, 1))


@lru_cache(maxsize=1)
def _cudnn_is_avoided() -> bool:
    release = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return (2, 9) <= release <= (2, 10) and 91002 <= (torch.backends.cudnn.version() or 0) < 91500


def is_plain(conv: nn.Module) -> TypeGuard[nn.Conv3d]:
    """Whether the weights of `conv` may be read instead of calling it; False for a module that a host replaced."""
    return type(conv) is nn.Conv3d and not conv._forward_hooks and not conv._forward_pre_hooks


def convolve_first(conv: nn.Conv3d, frame: Tensor) -> Tensor:
    """`conv` without padding in time over the first frame of a video [B, C, 1, H, W], which follows zeros, so only the
    last row of its kernel matters. Computed in 2-D, because PyTorch would unfold a single frame in 3-D at even larger
    sizes, and lose the layout.
    """
    row, picture = conv.weight[:, :, -1], frame.squeeze(2)
    return F.conv2d(picture, row, conv.bias, conv.stride[1:], conv.padding[1:]).unsqueeze(2)


def convolve_by_frames(conv: nn.Conv3d, frames: Sequence[Tensor]) -> Tensor:
    """`conv` without padding in time over `frames` [B, C, H, W]: a sum of 2-D convolutions, one per row of its
    kernel.
    """
    starts = range(0, len(frames) - conv.kernel_size[0] + 1, conv.stride[0])
    first = _summed_rows(conv, frames)
    if len(starts) == 1:
        return first.unsqueeze(2)
    # Filled frame by frame: a concatenation would need twice the memory.
    sizes = (*first.shape[:2], len(starts), *first.shape[2:])
    made = torch.empty(sizes, dtype=first.dtype, memory_format=torch.channels_last_3d)
    made[:, :, 0] = first
    del first
    for index, start in enumerate(starts[1:], 1):
        made[:, :, index] = _summed_rows(conv, frames[start:])
    return made


def _summed_rows(conv: nn.Conv3d, frames: Sequence[Tensor]) -> Tensor:
    """The frame [B, C, H, W] that `conv` makes from the first of `frames`, as many as its kernel has rows."""
    rows, steps, padding = conv.weight.unbind(2), conv.stride[1:], conv.padding[1:]
    total = F.conv2d(frames[0], rows[0], conv.bias, steps, padding)
    for row, frame in zip(rows[1:], frames[1:], strict=False):
        total = total.add_(F.conv2d(frame, row, None, steps, padding))
    return total


def _is_tail(x: Tensor, depth: int) -> bool:
    """Whether x can be kept as it is: it has the length of a tail and is not a view, which would keep more memory
    alive.

    Nobody writes to a tensor after it was convolved.
    """
    return x.shape[2] == depth and x.untyped_storage().nbytes() == x.nbytes


def lookback(conv: nn.Module) -> int:
    """Input frames before the current ones that a causal convolution needs."""
    sizes = cast("nn.Conv3d", conv)  # A module that a host replaced has a convolution's sizes too.
    return sizes.kernel_size[0] - sizes.stride[0]


def _empty(like: Tensor, frames: int) -> Tensor:
    shape = (*like.shape[:2], frames, *like.shape[3:])
    return torch.empty(shape, device=like.device, dtype=like.dtype, memory_format=memory_format(like.device))


def _zeros(like: Tensor, frames: int) -> Tensor:
    return _empty(like, frames).zero_()

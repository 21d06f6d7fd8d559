"""Launches the Triton kernels as PyTorch operators, on devices where they were tested.

`usable(device)` decides once per process and device: it must be an NVIDIA GPU with Triton, and each operation is tried
and compared with its plain PyTorch version. If that fails (no compiler for Triton's launchers), it is logged and plain
PyTorch is used.
"""

from __future__ import annotations

import importlib.util
import logging
import threading
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from . import plain

LOG = logging.getLogger(__name__)
HALF = (torch.bfloat16, torch.float16)
LAST = torch.channels_last_3d
_WORTH_A_LAUNCH = 1 << 20
_TOKENS_AT_ONCE, _NUMBERS_AT_ONCE, _COPIED_AT_ONCE = 4, 4096, 4096

_verdicts: dict[torch.device, bool] = {}
_reaches: dict[torch.device, bool] = {}
_lock = threading.RLock()
_trying: set[torch.device] = set()


def usable(device: torch.device) -> bool:
    """Whether the kernels can be used on `device`."""
    if device.type != "cuda":
        return False
    if device in _verdicts:
        return _verdicts[device]
    with _lock:
        if device in _trying:  # The trial itself asks.
            return False
        if device not in _verdicts:
            _trying.add(device)
            try:
                _verdicts[device] = _tried(device)
            finally:
                _trying.discard(device)
        return _verdicts[device]


def serves(x: Tensor) -> bool:
    """Whether the kernels can be used for `x`: its device supports them, and it needs no gradient, which they do not
    have.
    """
    return x.is_cuda and not (torch.is_grad_enabled() and x.requires_grad) and usable(x.device)


def rotates(x: Tensor) -> bool:
    """Whether `rotate_into` accepts `x` [B, L, heads, head_dim]: the heads of a token are contiguous."""
    dim = x.shape[-1]
    packed = x.stride()[2:] == (dim, 1)
    return packed and dim & (dim - 1) == 0 and x.dtype in (*HALF, torch.float32) and serves(x)


def rotate_into(x: Tensor, rotation: Tensor, out: Tensor) -> None:
    """Writes `plain.rotated` of x [B, L, heads, head_dim] to `out`, which has the same shape and may be `x`."""
    torch.ops.packforcing.rotate_into(x, torch.view_as_real(rotation), out)


def activates(x: Tensor) -> bool:
    """Whether the VAE's kernels accept `x` [1, C, T, H, W]: channels come last."""
    return x.ndim == 5 and x.shape[0] == 1 and x.is_contiguous(memory_format=torch.channels_last_3d) and serves(x)


def norm_silu_into(x: Tensor, bias: Tensor | None, gamma: Tensor, out: Tensor, tail: Tensor) -> None:
    """Writes `plain.norm_silu` of x [1, C, T, H, W] plus `bias` [C] to `out`, and its last frames also to `tail`; all
    channels-last.
    """
    torch.ops.packforcing.norm_silu_into(x, bias, gamma, out, tail)


def add_biased(x: Tensor, bias: Tensor, other: Tensor) -> Tensor:
    """`plain.add_biased`, in one kernel if x and other [1, C, T, H, W] are channels-last."""
    if not (activates(x) and activates(other)):
        return plain.add_biased(x, bias, other)
    torch.ops.packforcing.add_biased(x, bias, other)
    return x


def doubled(x: Tensor) -> Tensor:
    """`plain.doubled` of x [1, C, T, H, W], channels-last."""
    sizes = (*x.shape[:3], 2 * x.shape[3], 2 * x.shape[4])
    out = torch.empty(sizes, dtype=x.dtype, device=x.device, memory_format=torch.channels_last_3d)
    torch.ops.packforcing.doubled(x, out)
    return out


def chosen_slots(scores: Tensor, blocks: Tensor, held: Tensor) -> Tensor:
    """`plain.chosen_slots` in one kernel."""
    out = torch.empty(3, len(held), dtype=torch.int32, device=held.device)
    torch.ops.packforcing.chosen_slots(scores.float().contiguous(), blocks, held, out)
    return out


def reaches(bank: Tensor, device: torch.device) -> bool:
    """Whether `recall` can read `bank`: pinned system RAM that a kernel on `device` was tested to read."""
    if device.type != "cuda" or not bank.is_pinned() or not usable(device):
        return False
    with _lock:
        if device not in _reaches:
            _reaches[device] = _reads_the_host(device)
        return _reaches[device]


def recall(bank: Tensor, slots: Tensor, held: Tensor, out: Tensor) -> None:
    """Copies the slots that `plain.chosen_slots` chose from `bank` [m, B, tokens, heads, head_dim] to `out` [k, B,
    ...], except those that are in place already according to `held`. The rows of a slot and batch are contiguous.
    """
    torch.ops.packforcing.recall(bank, slots, held, out)


def adds_scaled(base: Tensor, x: Tensor, gain: Tensor) -> bool:
    """Whether `add_scaled` accepts these: one video, x contiguous, channels contiguous, all of one dtype. For small
    tensors PyTorch's own launch is the quicker one.
    """
    if x.numel() < _WORTH_A_LAUNCH:
        return False
    shift = base.shape[2] == 1 and base.stride(-1) == 1
    laid_out = x.shape[0] == 1 and x.is_contiguous() and gain.stride(-1) == 1 and (shift or base.is_contiguous())
    return laid_out and base.dtype == x.dtype == gain.dtype and serves(x) and not torch.compiler.is_compiling()


def add_scaled(base: Tensor, x: Tensor, gain: Tensor) -> Tensor:
    """`plain.add_scaled`, in one kernel if `adds_scaled`. torch.compile fuses the plain one with its neighbours."""
    if not adds_scaled(base, x, gain):
        return plain.add_scaled(base, x, gain)
    out = torch.empty_like(x)
    torch.ops.packforcing.add_scaled(base, x, gain, out)
    return out


def linear_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`plain.linear_gelu` in one kernel of the matrix library."""
    made = torch._addmm_activation(bias, x.flatten(0, -2), weight.t(), use_gelu=True)
    return made.unflatten(0, x.shape[:-1])


def _rotate(x: Tensor, rotation: Tensor, out: Tensor) -> None:
    from . import programs

    batch, tokens, heads, dim = x.shape
    turn_token = 0 if rotation.shape[0] == 1 else rotation.stride(0)
    grid = (-(-tokens // _TOKENS_AT_ONCE), batch)
    with _on(x.device):
        programs.rotate[grid](
            x, rotation, out, tokens, x.stride(0), x.stride(1), out.stride(0), out.stride(1), turn_token,
            HEADS=heads, DIM=dim, ROWS=_TOKENS_AT_ONCE, num_warps=4,
        )  # fmt: skip


def _add_scaled(base: Tensor, x: Tensor, gain: Tensor, out: Tensor) -> None:
    from . import programs

    frames, tokens, width = x.shape[1:]
    size = tokens * width
    grid = (-(-size // _NUMBERS_AT_ONCE), frames)
    with _on(x.device):
        programs.add_scaled[grid](
            base, x, gain, out, size, base.stride(1), gain.stride(1),
            SHIFTS=base.shape[2] == 1 < tokens, WIDTH=width, AT_ONCE=_NUMBERS_AT_ONCE, num_warps=8,
        )  # fmt: skip


def _norm_silu(x: Tensor, bias: Tensor | None, gamma: Tensor, out: Tensor, tail: Tensor) -> None:
    from . import programs

    width, rows = x.shape[1], x.numel() // x.shape[1]
    columns = 1 << (width - 1).bit_length()
    at_once = max(1, _NUMBERS_AT_ONCE // columns)
    grid = (-(-rows // at_once),)
    with _on(x.device):
        programs.norm_silu[grid](
            x, gamma if bias is None else bias, gamma, out, tail, rows, tail.numel() // width,
            BIASED=bias is not None, WIDTH=width, COLUMNS=columns, ROWS=at_once, num_warps=8,
        )  # fmt: skip


def _add_biased(x: Tensor, bias: Tensor, other: Tensor) -> None:
    from . import programs

    grid = (-(-x.numel() // _NUMBERS_AT_ONCE),)
    with _on(x.device):
        programs.add_biased[grid](x, bias, other, x.numel(), WIDTH=x.shape[1], AT_ONCE=_NUMBERS_AT_ONCE, num_warps=8)


def _doubled(x: Tensor, out: Tensor) -> None:
    from . import programs

    _, width, frames, rows, columns = x.shape
    grid = (-(-columns * width // _NUMBERS_AT_ONCE), frames * rows)
    with _on(x.device):
        programs.doubled[grid](x, out, columns, WIDTH=width, AT_ONCE=_NUMBERS_AT_ONCE, num_warps=8)


def _chosen_slots(scores: Tensor, blocks: Tensor, held: Tensor, out: Tensor) -> None:
    from . import programs

    columns = 1 << (len(scores) - 1).bit_length()
    with _on(held.device):
        programs.chosen_slots[(1,)](
            scores, blocks, held, out, len(scores), SLOTS=len(held), COLUMNS=columns, num_warps=1
        )


def _recall(bank: Tensor, slots: Tensor, held: Tensor, out: Tensor) -> None:
    from . import programs

    batches, size = bank.shape[1], bank[0, 0].numel()
    grid = (-(-size // _COPIED_AT_ONCE), len(held), batches)
    with _on(out.device):
        programs.recall[grid](
            bank, slots, held, out, len(held), size, batches, out.stride(0), out.stride(1),
            AT_ONCE=_COPIED_AT_ONCE, num_warps=8,
        )  # fmt: skip


def _on(device: torch.device) -> AbstractContextManager:
    """Makes `device` current, where Triton launches; its interpreter needs none."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


_LAUNCHES = {
    "rotate_into": _rotate,
    "add_scaled": _add_scaled,
    "norm_silu_into": _norm_silu,
    "add_biased": _add_biased,
    "doubled": _doubled,
    "chosen_slots": _chosen_slots,
    "recall": _recall,
}


def _define() -> torch.library.Library | None:
    """Declares the operators; a second copy of this package in the process finds them declared."""
    if hasattr(torch.ops.packforcing, "rotate_into"):
        return None
    library = torch.library.Library("packforcing", "FRAGMENT")
    library.define("rotate_into(Tensor x, Tensor rotation, Tensor(a!) out) -> ()")
    library.define("add_scaled(Tensor base, Tensor x, Tensor gain, Tensor(a!) out) -> ()")
    library.define("norm_silu_into(Tensor x, Tensor? bias, Tensor gamma, Tensor(a!) out, Tensor(b!) tail) -> ()")
    library.define("add_biased(Tensor(a!) x, Tensor bias, Tensor other) -> ()")
    library.define("doubled(Tensor x, Tensor(a!) out) -> ()")
    library.define("chosen_slots(Tensor scores, Tensor blocks, Tensor held, Tensor(a!) out) -> ()")
    library.define("recall(Tensor bank, Tensor slots, Tensor held, Tensor(a!) out) -> ()")
    for name, launch in _LAUNCHES.items():
        library.impl(name, launch, "CUDA")
        library.impl(name, lambda *_: None, "Meta")
    return library


_LIBRARY = _define()


def _tried(device: torch.device) -> bool:
    if torch.version.hip is not None or importlib.util.find_spec("triton") is None:
        return False
    try:
        worst = max(_differences(device))
    except Exception as error:  # Triton and its compiler raise errors of many kinds.
        LOG.warning("PackForcing runs without its Triton kernels: %s: %s", type(error).__name__, error)
        return False
    if worst > 0.02:
        LOG.warning("PackForcing runs without its Triton kernels: on this GPU they differ by %.2g.", worst)
    return worst <= 0.02


@torch.no_grad()
def _reads_the_host(device: torch.device) -> bool:
    """Whether `recall` can read pinned system RAM."""
    try:
        bank = torch.arange(3 * 2 * 5000, dtype=torch.float32).view(3, 2, 1000, 1, 5).pin_memory()
        slots = torch.tensor([[7, 9], [2, 0], [0, 1]], dtype=torch.int32, device=device)
        out = torch.full((2, *bank.shape[1:]), -1.0, device=device)
        recall(bank, slots, torch.tensor([7, 8], dtype=torch.int32, device=device), out)
        return bool((out[0] == -1).all()) and torch.equal(out[1].cpu(), bank[0])
    except Exception as error:  # As above.
        LOG.warning("PackForcing selects from a bank in system RAM on the CPU: %s: %s", type(error).__name__, error)
        return False


@torch.no_grad()
def _differences(device: torch.device) -> list[float]:
    """The largest difference of each kernel from plain PyTorch, for values of about 1 in bfloat16.

    It launches the kernels themselves: whether they serve is what is being found out, so it cannot be asked.
    """
    own = torch.ops.packforcing
    generator = torch.Generator(device).manual_seed(0)

    def numbers(*sizes: int) -> Tensor:
        return torch.randn(sizes, device=device, generator=generator)

    x, angles = numbers(1, 7, 3, 64).bfloat16(), numbers(7, 1, 32)
    rotation, turned = torch.polar(torch.ones_like(angles), angles), torch.empty_like(x)
    own.rotate_into(x, torch.view_as_real(rotation), turned)
    video = numbers(1, 24, 3, 4, 5).bfloat16().contiguous(memory_format=LAST)
    gamma, made, tail = numbers(24, 1, 1, 1).bfloat16(), torch.empty_like(video), torch.empty_like(video[:, :, :2])
    tail = tail.contiguous(memory_format=LAST)
    lacking, other = numbers(24).bfloat16(), numbers(1, 24, 3, 4, 5).bfloat16()
    other = other.contiguous(memory_format=LAST)
    own.norm_silu_into(video, lacking, gamma, made, tail)
    summed, larger = video.clone(), numbers(1, 24, 3, 8, 10).bfloat16().contiguous(memory_format=LAST)
    own.add_biased(summed, lacking, other)
    own.doubled(video, larger)
    rows, weight, bias = numbers(16, 32), numbers(64, 32) / 6, numbers(64)
    activated = linear_gelu(rows.bfloat16(), weight.bfloat16(), bias.bfloat16())
    tokens, gains = numbers(1, 2, 5, 24).bfloat16(), numbers(1, 2, 3, 24).bfloat16()
    gate, shift = gains[:, :, 1:2], gains[:, :, 2:]
    gated, shifted = torch.empty_like(tokens), torch.empty_like(tokens)
    own.add_scaled(tokens, tokens, gate, gated)
    own.add_scaled(shift, tokens, gate, shifted)
    scores, blocks = numbers(9), torch.tensor([4, 5, 6, 7, 8, 0, 1, 2, 3], device=device)
    held = torch.tensor([8, -1, 1, 3], device=device)
    slots = chosen_slots(scores, blocks.int(), held.int())
    pairs = (
        (slots, plain.chosen_slots(scores, blocks, held)),
        (turned, plain.rotated(x, rotation)),
        (gated, plain.add_scaled(tokens.float(), tokens.float(), gate.float())),
        (shifted, plain.add_scaled(shift.float(), tokens.float(), gate.float())),
        (made, plain.norm_silu(video.float() + lacking.float().view(-1, 1, 1, 1), gamma.float())),
        (summed, plain.add_biased(video.float(), lacking.float(), other.float())),
        (larger, plain.doubled(video)),
        (tail, made[:, :, -2:]),
        (activated, plain.linear_gelu(*(t.bfloat16().float() for t in (rows, weight, bias)))),
    )
    return [float(((a.float() - b).abs() / (1 + b.abs())).max()) for a, b in pairs]

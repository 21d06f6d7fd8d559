"""Plans the memory of a training on every rank before it starts. Weights and optimiser moments are computed from their
sizes; activations are measured by running the pass on the meta device and adding up what autograd saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ...cache.config import Policy
from ...geometry import GB
from ...model.config import WanConfig
from ...model.ops import TorchOps, build_on_meta
from ...model.wan import Wan
from ...rope import GridRope
from .data import ClipShape
from .flow import bidirectional_flow, teacher_forced_flow
from .learner import LAYERS, Optimisation
from .parts import PartsHistory, PartsPlan
from .wan import TrainedWan


@dataclass(frozen=True)
class TrainedBytes:
    """Bytes on each rank. `gathered` is the bfloat16 copy of the weights that matrix products read."""

    weights: int
    gathered: int
    gradients: int
    moments: int
    average: int

    @property
    def total(self) -> int:
        return self.weights + self.gathered + self.gradients + self.moments + self.average


def trained_bytes(network: nn.Module, optimisation: Optimisation | None, ranks: int = 1) -> TrainedBytes:
    """Returns the bytes of a network without activations, its float32 weights sharded over `ranks`. Without an
    `optimisation` it is frozen and unsharded, in its present dtype.
    """
    if optimisation is None:
        return TrainedBytes(sum(p.nbytes for p in network.parameters()), 0, 0, 0, 0)
    numbers = sum(p.numel() for p in network.parameters())
    one_moment = sum(
        p.numel()
        for name, p in network.named_parameters()
        if optimisation.matrices == "muon" and p.ndim == 2 and LAYERS in name
    )
    each = -(-4 * numbers // ranks)
    moments = -(-4 * (2 * numbers - one_moment) // ranks)
    # Gathered weights have gradients of the same size until these are reduced over the ranks.
    gathered = 2 * numbers if ranks == 1 else 4 * numbers
    return TrainedBytes(each, gathered, each, moments, each if optimisation.average is not None else 0)


class _Kept(torch.autograd.Function):
    """A stand-in for attention that computes nothing and saves what fused kernels save for the backward pass: q, k, v,
    the output, and the log-sum-exp of each query.
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = torch.empty_like(q)
        ctx.save_for_backward(q, k, v, out, q.new_empty(q.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        raise NotImplementedError("This pass only measures what is saved.")


def _kept_bytes(config: WanConfig, clip: ClipShape, policy: Policy | None) -> int:
    """Returns the bytes that autograd saves for one sample: in the teacher's pass, or in teacher forcing under
    `policy`.
    """
    net = build_on_meta(lambda: Wan(config, TorchOps)).bfloat16()
    net.patch_embedding.float()
    model = TrainedWan(net, config, dtype=torch.bfloat16, device="meta", attention=_Kept.apply)
    rows, columns = clip.height // 16, clip.width // 16
    rope = GridRope(config.head_dim, (rows, columns), "meta")
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        if not isinstance(tensor, nn.Parameter):
            kept.append(tensor)
        return tensor

    x = torch.empty(1, 16, clip.latent_frames, 2 * rows, 2 * columns, device="meta")
    sigma = torch.empty(1, clip.latent_frames, device="meta")
    context = torch.empty(1, config.text_len, config.text_dim, device="meta", dtype=torch.bfloat16)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if policy is None:
            bidirectional_flow(model, x, sigma, context, rope)
        else:
            blocks = clip.latent_frames // clip.frames_per_block
            parts = PartsPlan(policy.partitions(clip.frames_per_block), blocks, rope).parts()
            teacher_forced_flow(model, x, x, sigma, context, PartsHistory(parts, model.attention))
    # Views of one tensor share its storage, which counts once.
    return sum({storage._cdata: storage.nbytes() for storage in (t.untyped_storage() for t in kept)}.values())


@dataclass(frozen=True)
class Activations:
    """Bytes of one sample's activations: with all of them kept, and with recomputed layers."""

    kept: int
    recomputed: int


def activations(config: WanConfig, clip: ClipShape, policy: Policy | None = None) -> Activations:
    """Returns the activations of one sample, for the teacher (no `policy`) or for teacher forcing. They are measured
    with one and with two layers and extrapolated, since all layers are alike.
    """
    one, two = (_kept_bytes(replace(config, num_layers=layers), clip, policy) for layers in (1, 2))
    layer = two - one
    rest = one - layer
    frames = clip.latent_frames * (1 if policy is None else 2)
    tokens = frames * (clip.height // 16) * (clip.width // 16)
    between = 2 * tokens * config.dim
    return Activations(rest + config.num_layers * layer, rest + config.num_layers * between + layer)


@dataclass(frozen=True)
class Plan:
    """A stage's memory as table rows: a name, and bytes on each rank."""

    title: str
    rows: Sequence[tuple[str, int]]

    def __str__(self) -> str:
        lines = [(name, f"{size / GB:10.2f} GB") for name, size in self.rows]
        lines.append(("together", f"{sum(size for _, size in self.rows) / GB:10.2f} GB"))
        width = max(len(name) for name, _ in lines)
        return "\n".join([self.title, *(f"  {name:<{width}} {size}" for name, size in lines)])


def plan_memory(
    title: str,
    networks: Sequence[tuple[str, nn.Module, Optimisation | None]],
    passes: Sequence[tuple[str, Activations]],
    *,
    samples: int = 1,
    ranks: int = 1,
    recompute: bool = False,
) -> Plan:
    """Returns the memory that every rank needs: for its networks (frozen if without an optimisation), and for `samples`
    clips at a time in the passes with a gradient. Only the largest of these passes counts, since they run one after the
    other.
    """
    rows = []
    for name, network, optimisation in networks:
        parts = trained_bytes(network, optimisation, ranks)
        found = {f"{name}: {part}": getattr(parts, part) for part in TrainedBytes.__dataclass_fields__}
        rows += [(part, size) for part, size in found.items() if size]
    how = "layers recomputed" if recompute else "all kept"
    sizes = {name: samples * (size.recomputed if recompute else size.kept) for name, size in passes}
    if sizes:
        largest = max(sizes, key=sizes.__getitem__)
        rows.append((f"activations: {largest}, {samples} clips, {how}", sizes[largest]))
    return Plan(f"{title}, on each of {ranks} ranks", rows)

"""A network in training: its optimisers, the average of its weights (EMA), and the tensors of its saved state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ...errors import PackForcingError
from . import ranks
from .sharding import reshard, whole

LAYERS = "blocks."  # part of the names of all parameters inside a transformer's layers
Matrices = Literal["adamw", "muon"]
COMPRESSOR_EPS = 1e-12
"""AdamW's default of 1e-8 would slow down most of a compressor's weights: in the miniature, with its shipped policy,
75% of the gradients are smaller than that, because only one block in five sees a compressed block.
"""


@dataclass(frozen=True)
class Optimisation:
    """How one network is updated: AdamW with a linear warm-up, then a cosine decay to `final_rate` times the learning
    rate.

    With `matrices` "muon" the matrices of the transformer's layers use Muon instead
    (https://kellerjordan.github.io/posts/muon/), scaled so that its updates are as large as AdamW's (arXiv 2502.16982)
    and one learning rate serves both. AdamW's `eps` has to be smaller than the gradients of single weights. `average`
    is the decay of the exponential moving average (EMA) of the weights, None for no average, and `average_from` the
    step it begins at.
    """

    learning_rate: float
    warmup: int = 100
    final_rate: float = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.0
    eps: float = 1e-8
    clip: float = 1.0
    matrices: Matrices = "adamw"
    average: float | None = None
    average_from: int = 0

    def rate(self, step: int, steps: float) -> float:
        """Returns the learning rate of step `step` (from 0) of `steps`."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, steps - self.warmup)
        return self.learning_rate * (self.final_rate + (1 - self.final_rate) * (1 + math.cos(math.pi * done)) / 2)

    def decay(self, step: int) -> float:
        """Returns the EMA decay after step `step` (from 0). It starts low, since otherwise the average would consist
        mostly of the initial weights after few steps: (1 + n) / (10 + n) after n steps, as in TensorFlow's moving
        averages.
        """
        past = step - self.average_from
        return 0.0 if self.average is None or past < 0 else min(self.average, (1 + past) / (10 + past))


def build_optimisers(network: nn.Module, optimisation: Optimisation) -> list[torch.optim.Optimizer]:
    """Returns AdamW for the trainable parameters of `network`, or AdamW and Muon, which takes the matrices of the
    layers.

    Raises PackForcingError if this PyTorch has no Muon, or the network has no such matrices.
    """
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            of_layers = optimisation.matrices == "muon" and parameter.ndim == 2 and LAYERS in name
            (matrices if of_layers else rest).append(parameter)
    adamw = torch.optim.AdamW(
        rest,
        lr=optimisation.learning_rate,
        betas=optimisation.betas,
        eps=optimisation.eps,
        weight_decay=optimisation.weight_decay,
    )
    if optimisation.matrices == "adamw":
        return [adamw]
    if not hasattr(torch.optim, "Muon"):
        raise PackForcingError(
            f"matrices is 'muon', but PyTorch {torch.__version__} has no torch.optim.Muon, which came with 2.9. "
            "Install a newer PyTorch, or choose 'adamw'."
        )
    if not matrices:
        raise PackForcingError(
            f"matrices is 'muon', but a {type(network).__name__} has no matrices in layers called '{LAYERS}N'. "
            "Choose 'adamw'."
        )
    muon = torch.optim.Muon(
        matrices,
        lr=optimisation.learning_rate,
        weight_decay=optimisation.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [adamw, muon]


class GradientGuard:
    """Detects gradient spikes: the norm is not finite, or is JUMP times the largest of the last accepted norms. The
    reference is the largest norm and not the mean, because alternating kinds of steps may have very different norms.

    Clipping such a gradient would leave a useless direction, and AdamW's second moment would be affected for hundreds
    of steps. The state is stored in tensors, so a resumed training skips the same steps.
    """

    JUMP = 10.0
    REMEMBERED = 64
    ENOUGH = 16
    """Number of accepted norms before any norm can count as a spike."""

    def __init__(self) -> None:
        self.norms = torch.zeros(self.REMEMBERED, dtype=torch.float64)
        self.counts = torch.zeros(3, dtype=torch.int64)  # taken, refused, refused in a row
        self.tensors = {"guard.norms": self.norms, "guard.counts": self.counts}

    @property
    def refused(self) -> int:
        return int(self.counts[1])

    @property
    def in_a_row(self) -> int:
        return int(self.counts[2])

    @property
    def longest(self) -> float | None:
        """The largest remembered norm; None while too few are known. Steps without a gradient (norm 0)
        are not counted.
        """
        return None if int(self.counts[0]) < self.ENOUGH else float(self.norms.max())

    def jumps(self, norm: float) -> bool:
        return not math.isfinite(norm) or (self.longest is not None and norm > self.JUMP * self.longest)

    def take(self, norm: float) -> None:
        """Records the norm of an accepted step."""
        self.counts[2] = 0
        if norm > 0:
            self.norms[int(self.counts[0]) % self.REMEMBERED] = norm
            self.counts[0] += 1

    def refuse(self) -> None:
        self.counts[1:] += 1


class Learner:
    """A network with its optimisers and the average of its weights (EMA). Existing gradients are cleared."""

    def __init__(self, network: nn.Module, optimisation: Optimisation):
        self.network, self.optimisation = network, optimisation
        trainable = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        self.names, self.parameters = [name for name, _ in trainable], [p for _, p in trainable]
        self.optimisers = build_optimisers(network, optimisation)
        self.average = None if optimisation.average is None else [p.detach().clone() for p in self.parameters]
        self.guard = GradientGuard()
        self._make_moments()

    def clear(self) -> None:
        """Clears the gradients of the previous step."""
        for optimiser in self.optimisers:
            optimiser.zero_grad(set_to_none=True)

    def gather_gradients(self) -> float:
        """Call after the backward pass. Averages the gradients over all ranks, clips their norm, and returns the norm
        before clipping.
        """
        reshard(self.network)
        ranks.average(p.grad for p in self.parameters if not isinstance(p, DTensor))
        return float(whole(nn.utils.clip_grad_norm_(self.parameters, self.optimisation.clip)))

    def update(self, step: int, steps: float) -> None:
        """Takes one optimiser step with the present gradients, and updates the average."""
        self._move(self.optimisation.rate(step, steps))
        if self.average is not None and self.optimisation.average is not None:
            decay = self.optimisation.decay(step)
            torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    def _move(self, rate: float) -> None:
        for optimiser in self.optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate
            optimiser.step()

    def averaged(self) -> dict[str, Tensor]:
        """Returns the network's unsharded state dict, with the averaged weights if there are any. All ranks must call
        it.
        """
        state = self.network.state_dict()
        if self.average is not None:
            state |= dict(zip(self.names, self.average, strict=True))
        return {name: whole(tensor).detach() for name, tensor in state.items()}

    def tensors(self) -> dict[str, Tensor]:
        """Returns by name all tensors that the next step depends on, as this rank holds them. They are saved, and
        loaded in place.
        """
        found = {f"network.{name}": tensor for name, tensor in self.network.state_dict().items()}
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in zip(self.names, self.average, strict=True)}
        return found | self.guard.tensors | dict(self._moments())

    def _moments(self) -> Iterator[tuple[str, Tensor]]:
        names = {id(p): name for name, p in zip(self.names, self.parameters, strict=True)}
        for optimiser in self.optimisers:
            kind = type(optimiser).__name__.lower()
            for parameter, state in optimiser.state.items():
                for key, value in state.items():
                    yield f"{kind}.{names[id(parameter)]}.{key}", value

    def _make_moments(self) -> None:
        """Creates the optimisers' state tensors, all zero. By default they are created with a parameter's first
        gradient, which for some parameters comes late; so every saved state has the same tensors.
        """
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self._move(0.0)
        self.clear()
        for _, moment in self._moments():
            moment.zero_()


def stage_tensors(learners: Mapping[str, Learner]) -> dict[str, Tensor]:
    """Returns the tensors of all learners of a stage, with the learner's name as prefix."""
    return {f"{own}.{name}": t for own, learner in learners.items() for name, t in learner.tensors().items()}

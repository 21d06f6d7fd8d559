"""Plans the memory of a stage on every rank before it starts."""

from __future__ import annotations

from torch import nn

from ...cache.config import Full
from . import ranks
from .learner import Optimisation
from .memory import Activations, Plan, activations, plan_memory
from .presets import Size
from .setup import Job, Setup


def measured_passes(size: Size) -> dict[str, Activations]:
    """Returns the activations of one clip in each kind of training pass, by name."""
    return {
        "a whole clip, bidirectional": activations(size.model, size.clips),
        "teacher forcing": activations(size.model, size.clips, Full()),
    }


def plan_job(name: str, job: Job, setup: Setup) -> Plan:
    """Returns the memory plan of a job on each rank."""
    networks: list[tuple[str, nn.Module, Optimisation | None]] = [
        (own, net, job.stage.optimisation[own]) for own, net in job.stage.networks.items()
    ]
    networks += [(own, net, None) for own, net in job.frozen.items()]
    passes = measured_passes(setup.size)
    seen = {"teacher": "a whole clip, bidirectional"}.get(name, "teacher forcing")
    count = ranks.ranks()
    samples = 0 if name == "vae" else -(-setup.course(name).batch // count)
    return plan_memory(
        f"Memory of stage '{name}' at size {setup.size.name}",
        networks,
        [(seen, passes[seen])] if samples else [],
        samples=samples,
        ranks=count,
        recompute=setup.recompute,
    )

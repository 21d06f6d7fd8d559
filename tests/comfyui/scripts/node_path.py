"""Counts a block of the node's path on a fake CUDA device, in ComfyUI's folder: `python node_path.py LAYERS...`

The network is ComfyUI's own Wan of 1.3B with so many layers, built with the operations and called with the cast and
the attention that a MODEL in bf16 has; the rollout around it is ours, at 832x480 in blocks of 4. Prints one JSON line:
for each number of layers launches, bytes moved, bytes to the host, waits, races, mixes and the peak.
"""

import json
import sys
from pathlib import Path

from tests.fakecuda import render  # Before ComfyUI's folder, which may have tests of its own, comes first.
from tests.fakecuda.device import DEVICE

layers = [int(argument) for argument in sys.argv[1:]]
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, str(Path.cwd()))

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()  # the modules below read the options when they are imported

import comfy.model_management  # noqa: E402
import comfy.ops  # noqa: E402
import torch  # noqa: E402
from comfy.ldm.modules.attention import attention_pytorch  # noqa: E402
from comfy.ldm.wan.model import WanModel  # noqa: E402

from packforcing_core.cache.config import PackForcing  # noqa: E402
from packforcing_core.model.causal import CausalWan  # noqa: E402


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    out = attention_pytorch(*(x.flatten(2) for x in (q, k, v)), heads=q.shape[2])
    return out.unflatten(-1, q.shape[2:])


def cast(parameter: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return comfy.model_management.cast_to(parameter, dtype=like.dtype, device=like.device)


def their_model(case: render.Case) -> CausalWan:
    config = case.config
    with torch.device("meta"):
        network = WanModel(
            dim=config.dim,
            ffn_dim=config.ffn_dim,
            text_dim=config.text_dim,
            num_heads=config.num_heads,
            num_layers=config.num_layers,
            dtype=case.dtype,
            operations=comfy.ops.disable_weight_init,
        )
    render.fake_weights(network, case.dtype)
    return CausalWan(network, config, dtype=case.dtype, device=DEVICE, cast=cast, attention=attention)


def counted(count: int) -> dict:
    ledger = render.counted_block(render.Case(PackForcing(), layers=count), their_model)
    total = ledger.total()
    return {
        "launches": total.launches,
        "moved_bytes": total.moved_bytes,
        "to_host": total.to_host,
        "to_device": total.to_device,
        "waits": dict(total.waits),
        "races": len(ledger.races),
        "mixes": list(ledger.mixes),
        "peak": ledger.peak,
    }


print(json.dumps({count: counted(count) for count in layers}))

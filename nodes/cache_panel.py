"""The drawing on the KV Cache node: which past frames a block attends to, planned from the widgets before a run.

POST /packforcing/window takes the widget values of the node and of the nodes linked to it, `{"cache": {...}, "sampler":
{...} or null, "model": {...} or null}`. It answers `{"svg": ..., "text": ...}`, or `{"problem": ...}` with the message
that a run would give. All arithmetic is done by packforcing_core.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

import folder_paths
from aiohttp import web

from ..packforcing_core.cache.config import POLICY_PRESETS, Policy
from ..packforcing_core.checkpoint.families import FAMILIES, Family
from ..packforcing_core.checkpoint.load import inspect
from ..packforcing_core.compressor.weights import trained_span
from ..packforcing_core.drawing.past import draw_window
from ..packforcing_core.errors import PackForcingError
from ..packforcing_core.miniature import load as miniature
from ..packforcing_core.model.config import WAN_SIZES, WanConfig
from ..packforcing_core.recipe.plan import RenderPlan, parameter_count, plan_render
from ..packforcing_core.recipe.recipe import Recipe
from . import host
from .demo import NAME as MINIATURE
from .loader import COMPRESSOR_FOLDER, DTYPES, NO_COMPRESSOR, checkpoint_path
from .sampler import Sampler, settings_of

Values = Mapping[str, Any]
PATH = "/packforcing/window"


def add_route(routes: web.RouteTableDef) -> None:
    @routes.post(PATH)
    async def window(request: web.Request) -> web.Response:
        try:
            graph = await request.json()
            # Off the event loop: reading a checkpoint's header from a slow disk can take a while.
            answer = await asyncio.to_thread(planned_window, graph)
        except PackForcingError as error:
            answer = {"problem": str(error)}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise web.HTTPBadRequest(text=f"Expected widget values of cache, sampler and model: {error!r}") from error
        return web.json_response(answer)


def planned_window(graph: Mapping[str, Values | None]) -> dict[str, str]:
    """The drawing and one line of text for a graph's widgets. Which VAE the sampler gets is known only when it runs, so
    the peak is without it, and the text says so. Raises PackForcingError if the widgets contradict each other.
    """
    recipe, plan = planned(graph)
    return {"svg": draw_window(recipe, plan), "text": plan.describe(" without the VAE")}


def planned(graph: Mapping[str, Values | None]) -> tuple[Recipe, RenderPlan]:
    model = graph.get("model") or {}
    config, recognised = _model(str(model.get("checkpoint") or model.get("unet_name") or ""))
    policy = _policy(graph["cache"] or {}).fitted_to(_compressor_span(model))
    recipe = _recipe(policy, recognised, model, {**_defaults(), **(graph.get("sampler") or {})})
    dtype = host.inference_dtype(parameter_count(config), DTYPES.get(str(model.get("weight_dtype"))))
    return recipe, plan_render(config, recipe, dtype)


def _policy(widgets: Values) -> Policy:
    preset = POLICY_PRESETS[widgets["policy"]]
    names = {knob.name for knob in preset.knobs()}
    knobs = {key.removeprefix("policy."): value for key, value in widgets.items() if key.startswith("policy.")}
    return replace(preset, **{name: value for name, value in knobs.items() if name in names})


def _compressor_span(model: Values) -> float | None:
    """The time span of a compressed block, from the compressor that the loader node names; None without one."""
    if model.get("checkpoint") == MINIATURE:
        return miniature.MEMORY.mid_span if miniature.COMPRESSOR.exists() else None
    name = model.get("compressor")
    path = folder_paths.get_full_path(COMPRESSOR_FOLDER, str(name)) if name and name != NO_COMPRESSOR else None
    return trained_span(path) if path else None


def _defaults() -> dict[str, Any]:
    """The sampler's default widget values."""
    inputs = (declared.as_dict() | {"id": declared.id} for declared in Sampler.define_schema().inputs)
    return {declared["id"]: declared["default"] for declared in inputs if "default" in declared}


def _model(name: str) -> tuple[WanConfig, Family | None]:
    """Model size and family of a checkpoint file; the 1.3B sizes if the file cannot be read."""
    try:
        path = str(miniature.MODEL) if name == MINIATURE else checkpoint_path(name)
        status = os.stat(path)
        return _inspected(path, status.st_size, status.st_mtime_ns)
    except (PackForcingError, OSError):
        return WAN_SIZES["1.3B"], None


@lru_cache(maxsize=16)
def _inspected(path: str, size: int, changed: int) -> tuple[WanConfig, Family | None]:
    found = inspect(path)
    return found.config or WAN_SIZES["1.3B"], found.family


def _recipe(policy: Policy, recognised: Family | None, model: Values, widgets: Values) -> Recipe:
    chosen = next((p for p in (widgets["preset"], model.get("preset")) if p in FAMILIES), "auto")
    return settings_of({**widgets, "preset": chosen}, policy).recipe(recognised)

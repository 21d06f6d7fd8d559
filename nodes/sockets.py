"""The pack's own socket types; ComfyUI compares them by name."""

from __future__ import annotations

from comfy_api.v0_0_2 import io

CATEGORY = "PackForcing"

CacheSocket = io.Custom("PACKFORCING_CACHE")
"""Carries a `packforcing_core.cache.config.Policy`."""

StartSocket = io.Custom("PACKFORCING_START")
"""Carries a `start.StartFrom`."""

StreamSocket = io.Custom("PACKFORCING_STREAM")
"""Carries a `stream.LatentStream`."""

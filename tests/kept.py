"""All that a cache keeps, by the way to it: for tests that compare two of them."""

from __future__ import annotations

from torch import Tensor


def kept(part: object, way: str = "", seen: set[int] | None = None) -> dict[str, Tensor]:
    """The tensors in `part`, its attributes and containers, each once."""
    seen = set() if seen is None else seen
    if isinstance(part, Tensor):
        return {way: part}
    if id(part) in seen or callable(part):
        return {}
    seen.add(id(part))
    if isinstance(part, dict):
        items = part.items()
    elif isinstance(part, list | tuple):
        items = enumerate(part)
    elif hasattr(part, "__dict__"):
        items = vars(part).items()
    else:
        return {}
    found: dict[str, Tensor] = {}
    for name, value in items:
        found |= kept(value, f"{way}.{name}", seen)
    return found

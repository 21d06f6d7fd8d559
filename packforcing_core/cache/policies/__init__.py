"""The cache policies, one file each: knobs, plan, and the rule for selecting from or changing the past."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pkgutil import iter_modules

from ..policy import Policy


def found_policies() -> Iterator[type[Policy]]:
    """The policies defined by the files in this folder, in the order of the file names."""
    for file in iter_modules(__path__):
        module = import_module(f".{file.name}", __name__)
        for thing in vars(module).values():
            own = isinstance(thing, type) and thing.__module__ == module.__name__
            if own and issubclass(thing, Policy) and "name" in vars(thing):
                yield thing

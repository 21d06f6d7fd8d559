from __future__ import annotations

from hypothesis import settings

# No deadline: a busy machine is not a bug. The same examples in every run: a failure can be had again.
settings.register_profile("packforcing", deadline=None, derandomize=True, database=None)
settings.load_profile("packforcing")

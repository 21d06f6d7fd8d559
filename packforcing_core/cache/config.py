"""The list of cache policies and their presets. Each policy is one file in `policies/` and its own configuration.

The command line and the ComfyUI node read names, knobs, defaults and limits from here.
"""

from __future__ import annotations

from ..errors import PackForcingError
from .policies import found_policies
from .policies.deep_forcing import DeepForcing
from .policies.full import Full
from .policies.mem_rope import MemRoPE
from .policies.packforcing import PackForcing
from .policies.rolling_sink import RollingSink
from .policies.sink_window import SinkWindow
from .policies.tether_cache import TetherCache
from .policies.window import Window
from .policy import Policy

_DOCUMENTED: tuple[type[Policy], ...] = (
    *(SinkWindow, Window, Full, PackForcing),
    *(DeepForcing, TetherCache, MemRoPE, RollingSink),
)
POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (*_DOCUMENTED, *found_policies())}

DOCUMENTED_PRESETS: dict[str, Policy] = {
    PackForcing.title: PackForcing(),
    DeepForcing.title: DeepForcing(),
    TetherCache.title: TetherCache(),
    MemRoPE.title: MemRoPE(),
    RollingSink.title: RollingSink(),
    "Sink + window (LongLive)": SinkWindow(window_frames=12, sink_frames=3),
    Window.title: Window(),
    "Sink left behind (StreamingLLM)": SinkWindow(window_frames=21, sink_frames=3, realign=False),
    Full.title: Full(),
}
"""The presets in the help pages and with Chinese texts, in menu order."""

POLICY_PRESETS: dict[str, Policy] = {
    **DOCUMENTED_PRESETS,
    **{policy.title: policy() for policy in POLICIES.values() if policy not in _DOCUMENTED},
}
"""The choices of the KV Cache node. A new file in `policies` is added at the end, untranslated."""

MINIATURE_MEMORY = PackForcing(sink_frames=8, recent_frames=4, top_k_blocks=4, mid_span=1.0)
"""The policy for training and sampling the miniature and its compressor."""


def build_policy(name: str, **settings: int | float | bool | str | None) -> Policy:
    """The policy called `name` with the settings that are not None. Raises PackForcingError for unknown names and
    knobs.
    """
    if name not in POLICIES:
        raise PackForcingError(f"Unknown cache policy '{name}'; expected one of {', '.join(POLICIES)}.")
    policy = POLICIES[name]
    own = [k.name for k in policy.knobs()]
    chosen = {key: value for key, value in settings.items() if value is not None}
    foreign = sorted(set(chosen) - set(own))
    if foreign:
        raise PackForcingError(
            f"Policy '{name}' has no knob {', '.join(foreign)}; its knobs are {', '.join(own) or 'none'}."
        )
    return policy(**chosen)

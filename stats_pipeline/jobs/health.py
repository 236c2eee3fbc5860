"""Whether the pipeline works, as far as the database knows: asked by the page, `/health` and `doctor`."""

from typing import Literal

LATE_TICK_SECONDS = 90  # a tick waits up to 20 s for work, and the next one follows within a few


def ticking(seconds_since_tick: float | None) -> Literal["ok", "late", "never"]:
    """What the time since the last tick of a sensor says."""
    if seconds_since_tick is None:
        return "never"
    return "ok" if seconds_since_tick <= LATE_TICK_SECONDS else "late"

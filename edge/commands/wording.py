"""How findings are put to people, in tables, lines and over pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.contract.messages import CoverageMessage


def headline(message: CoverageMessage) -> str:
    """Return the one line over an overlay."""
    fraction = message.ice_pixel_fraction
    found = "neither ice nor water" if fraction is None else f"{percent(fraction)} ice"
    return f"{found}   {message.captured_at:%Y-%m-%d %H:%M} UTC"


def percent(fraction: float | None) -> str:
    """Return a fraction for a person; a dash where it is not known."""
    return "–" if fraction is None else f"{fraction:.1%}"

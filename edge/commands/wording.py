"""How findings are put to people, in tables, lines and over pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge.contract.messages import Certification, CoverageMessage


def headline(message: CoverageMessage) -> str:
    """Return the one line over an overlay."""
    fraction = message.ice_pixel_fraction
    found = "neither ice nor water" if fraction is None else f"{percent(fraction)} ice"
    return f"{found}   {message.captured_at:%Y-%m-%d %H:%M} UTC"


def percent(fraction: float | None) -> str:
    """Return a fraction for a person; a dash where it is not known."""
    return "–" if fraction is None else f"{fraction:.1%}"


def certified(found: Certification) -> str:
    """Return how an engine did on the golden frames, in a line."""
    if not found.passed:
        return f"not equal, on {found.at:%Y-%m-%d %H:%M} UTC: {'; '.join(found.shortfalls)}"
    least = f"{found.least_class} {found.least_class_iou:.3f}" if found.least_class else "none"
    return (
        f"certified {found.at:%Y-%m-%d %H:%M} UTC on {found.frames} golden frames: agreement "
        f"{found.mask_agreement:.3%} of the mask, least IoU {least}, ice fraction within "
        f"{found.coverage_difference:.4f}, {found.median_s * 1000:.0f} ms a frame"
    )

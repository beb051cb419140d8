"""Classes for networks that are built in a test."""

from __future__ import annotations

from edge.contract.classes import Classes

ROLES = ("other", "water", "ice")


def classes_of(count: int) -> Classes:
    """Return so many classes: other, water, ice, and again from the start."""
    return Classes.model_validate(
        [
            {"index": i, "name": f"class_{i}", "role": ROLES[i % 3], "colour": (i, i, i)}
            for i in range(count)
        ]
    )

"""Wrong answers, as tests ask for them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from tensorrt_double.settings import fault, value

if TYPE_CHECKING:
    from collections.abc import Mapping

_CLASSES = ("mask", "member_masks")
"""The outputs whose values are classes."""


def tampered(computed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the outputs, each as the faults that are asked for leave it."""
    return {name: _tampered(name, array) for name, array in computed.items()}


def _tampered(name: str, array: Any) -> Any:  # noqa: ANN401 - an array of any type
    if fault("zeros") or fault("nan"):
        return np.zeros_like(array)
    if fault("garbage"):
        return np.random.default_rng(0).integers(0, 256, array.shape).astype(array.dtype)
    if name not in _CLASSES:
        return array
    if fault("swap-classes"):
        array = np.where(array < 2, 1 - array, array).astype(array.dtype)
    if fault("lose-class"):
        array = np.where(array == int(value("lose-class", 1)), 0, array).astype(array.dtype)
    return array

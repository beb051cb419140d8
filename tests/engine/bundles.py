"""Bundles that differ from the demo's in some files and fields."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.contract.bundle import Bundle, open_bundle, write_bundle

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

    Arrays = dict[str, NDArray[Any]]


def changed(demo: Bundle, path: Path, files: Mapping[str, bytes], **fields: Any) -> Bundle:  # noqa: ANN401
    """Write a whole bundle, hashes and all, with other files and fields of the manifest."""
    kept = {one.path: demo.read(one.path) for one in demo.manifest.files}
    manifest = demo.manifest.model_dump(by_alias=True, exclude={"files"})
    write_bundle(path, {**manifest, **fields}, {**kept, **files})
    return open_bundle(path)


def answer_file(**arrays: NDArray[Any]) -> bytes:
    """Return arrays as a golden answer's file."""
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def arrays_of(data: bytes) -> Arrays:
    """Return the arrays of such a file."""
    with np.load(io.BytesIO(data)) as found:
        return dict(found)

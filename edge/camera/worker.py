"""The camera's child process: opens one camera, answers with frames."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from edge.camera import open_camera
from edge.child import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.config import FolderCamera
    from edge.contract.frames import Frame


@contextmanager
def start(config: FolderCamera) -> Iterator[Callable[[str | None], Frame]]:
    """Open the camera; each request is the cursor to go on after."""
    yield open_camera(config).capture


if __name__ == "__main__":
    serve(start)

"""The camera's child process: opens one camera, answers with frames."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from edge.camera import open_camera
from edge.child import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from edge.child import Tell
    from edge.config import FolderCamera
    from edge.contract.frames import Frame

    Request = tuple[Literal["seek", "capture"], str | None]


@contextmanager
def start(config: FolderCamera, _: Tell) -> Iterator[Callable[[Request], str | Frame]]:
    """Open the camera; a request is what to do and the cursor to do it with."""
    camera = open_camera(config)

    def answer(request: Request) -> str | Frame:
        kind, cursor = request
        return camera.seek(cursor) if kind == "seek" else camera.capture(cursor or "")

    yield answer


if __name__ == "__main__":
    serve(start)

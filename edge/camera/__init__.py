"""Cameras: one protocol, each kind in a file of its own, each capture in a spawned child."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from edge.contract.errors import CameraError

if TYPE_CHECKING:
    from edge.config import FolderCamera
    from edge.contract.frames import Frame


class Camera(Protocol):
    """Something that gives frames."""

    def seek(self, after: str | None) -> str:
        """Return the cursor of the next frame after a cursor (None: the first).

        Raises CameraError where there is none.
        """
        ...

    def capture(self, cursor: str) -> Frame:
        """Return the frame that ``seek`` named. Raises CameraError."""
        ...


class CameraTimeoutError(CameraError):
    """The camera worker died or was killed at its deadline."""

    def __init__(self, found: str) -> None:
        """Publish it as ``camera_timeout``."""
        super().__init__(found, fault="camera_timeout", then="The next slot tries again.")


def open_camera(config: FolderCamera) -> Camera:
    """Return the camera a config asks for, in this process."""
    from edge.camera.folder import Folder  # noqa: PLC0415 - only the kind that is asked for

    return {"folder": Folder}[config.type](config)


def capture(config: FolderCamera, after: str | None) -> Frame:
    """Capture one frame in a child process that is killed at the camera's deadline.

    Raises CameraError, also where the child died or hung; its cursor is then behind the frame
    that did it, so that one picture cannot stop a camera for ever.
    """
    from edge.child import Child  # noqa: PLC0415 - a camera in this process needs no child

    cursor = None
    until = time.monotonic() + config.deadline_s
    try:
        with Child(
            "edge.camera.worker",
            config,
            error=CameraTimeoutError,
            start_deadline_s=config.deadline_s,
        ) as child:
            cursor = child.ask(("seek", after), deadline_s=until - time.monotonic())
            frame: Frame = child.ask(("capture", cursor), deadline_s=until - time.monotonic())
            return frame
    except CameraTimeoutError as fault:
        fault.cursor = cursor
        raise

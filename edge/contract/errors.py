"""The error tree: few errors, named by what the operator must do."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from datetime import datetime

    from edge.contract.frames import TimeSource


class IcecamError(Exception):
    """Anything icecam reports by name instead of by traceback.

    The message is built from what was found, what was expected and what happens next;
    the parts stay readable as attributes.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, found: str, *, expected: str = "", then: str = "") -> None:
        """Join the parts into one sentence; empty parts are left out."""
        self.found = found
        self.expected = expected
        self.then = then
        sentence = f"{found}; expected {expected}" if expected else found
        super().__init__(f"{sentence}. {then}" if then else sentence)


class ConfigError(IcecamError):
    """The operator must correct something that was written by hand: config, dataset, arguments."""

    exit_code: ClassVar[int] = 2


class BundleError(IcecamError):
    """The operator must bring another bundle: damaged, incomplete, unsigned or unknown."""


class EngineError(IcecamError):
    """The engine could not be loaded or did not answer; the frame was not segmented."""


class CameraError(IcecamError):
    """The camera gave no usable frame.

    ``fault`` is the word that is published as the reason (see docs/protocol.md);
    ``cursor`` is what the camera passes over next time, or None; ``captured_at`` is the picture's
    time where one was found, ``time_source`` what said so.
    """

    def __init__(
        self,
        found: str,
        *,
        fault: str = "camera_fault",
        cursor: str | None = None,
        captured_at: datetime | None = None,
        expected: str = "",
        then: str = "",
    ) -> None:
        """Keep the fault word, the cursor and the time beside the message."""
        super().__init__(found, expected=expected, then=then)
        self.fault = fault
        self.cursor = cursor
        self.captured_at = captured_at
        self.time_source: TimeSource = "clock"


class DeliveryError(IcecamError):
    """A message could not be sent, or what arrived is not what the protocol promises."""

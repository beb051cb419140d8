"""Arguments that several commands take."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edge.contract.errors import ConfigError

if TYPE_CHECKING:
    from edge.contract.frames import Size

DatasetPath = Annotated[
    Path, typer.Argument(help="A folder with a dataset.toml, or such a file.", show_default=False)
]


def size_of(text: str, option: str = "--size") -> Size:
    """Return (height, width) of a text such as 224x384. Raises ConfigError."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise ConfigError(f"{option} {text}", expected="HEIGHTxWIDTH, such as 224x384")
    return int(found[1]), int(found[2])


def share_the_cores() -> None:
    """Let idle OpenMP threads sleep: on a busy machine, spinning ones cost most of its time.

    Said before torch is loaded, or it is not heard.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

"""What the command lines share: errors as one line, tracebacks only when asked for."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from edge.contract.errors import IcecamError

if TYPE_CHECKING:
    import typer

DEBUG = "--debug"
_INTERRUPTED = 130


def run_app(app: typer.Typer) -> None:
    """Run a command line and leave the process with its exit status.

    An IcecamError becomes one message on stderr and the error's exit code; with ``--debug``
    anywhere among the arguments its traceback is shown.
    """
    debug = DEBUG in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        app(args=arguments)
    except IcecamError as error:
        if debug:
            raise
        tell_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def tell_error(error: Exception) -> None:
    """Print an error for a person, in red where stderr is a terminal."""
    from rich.console import Console  # noqa: PLC0415 - only when there is something to say

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print("error: ", style="bold red", end="")
    console.print(str(error), markup=False)

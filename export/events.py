"""What happens while an engine is made, as events: for a person, or one JSON object per line.

say: text. progress: a phase of the build and how far it is. engine: one that was certified.
refused: a graph without an engine, and why. verdict: what serves in the end. error: what broke off.
"""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from edge.commands.wording import certified
from edge.console import tell_error
from edge.contract.errors import EngineError
from edge.engine.trt.cache import Sidecar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.progress import TaskID

    Event = dict[str, Any]
    Tell = Callable[[Event], None]


@contextmanager
def display(*, as_json: bool) -> Iterator[Tell]:
    """Give a function that shows events as they come."""
    if as_json:
        yield _print_json
        return
    console = Console(highlight=False, soft_wrap=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield _Shown(console, progress).tell


def _print_json(event: Event) -> None:
    sys.stdout.write(json.dumps(event) + "\n")
    sys.stdout.flush()


class _Shown:
    """Events for a person: lines, and a bar for each phase that is under way."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._depths: dict[str, int] = {}

    def tell(self, event: Event) -> None:
        """Show an event; one of a kind that is not known yet is passed over.

        Of one that another version of icecam tells in another way, its name alone is shown.
        """
        kind = str(event.get("event"))
        show = {
            "say": self._say,
            "progress": self._advance,
            "engine": self._engine,
            "refused": self._refused,
            "verdict": self._verdict,
            "error": self._error,
        }.get(kind)
        try:
            if show is not None:
                show(event)
        except (KeyError, TypeError, ValueError):
            self._say({"text": f"{kind}: told by another version of icecam, and not understood"})

    def _say(self, event: Event) -> None:
        self._console.print(str(event["text"]), markup=False)

    def _advance(self, event: Event) -> None:
        phase, parent = str(event["phase"]), str(event["parent"])
        if event["over"]:
            if phase in self._bars:
                self._progress.remove_task(self._bars.pop(phase))
            return
        if phase not in self._bars:
            self._depths[phase] = self._depths.get(parent, -1) + 1
            words = "  " * self._depths[phase] + phase.replace("[", r"\[")
            self._bars[phase] = self._progress.add_task(words, total=int(event["steps"]))
        self._progress.update(self._bars[phase], completed=int(event["step"]))

    def _engine(self, event: Event) -> None:
        found = Sidecar.model_validate(event["engine"])
        self._console.print("[green]✓[/green] ", end="")
        self._console.print(
            f"graph {event['graph']}: {event['found']}; {found.plan_bytes / 1e6:.1f} MB, built in "
            f"{found.build_s:.0f} s with a workspace of {found.workspace_bytes >> 20} MiB",
            markup=False,
        )
        self._console.print(f"  {certified(found.certification)}", markup=False)
        self._console.print(f"  {event['plan']}", markup=False)

    def _refused(self, event: Event) -> None:
        self._console.print("[red]✗[/red] ", end="")
        self._console.print(str(event["message"]), markup=False)

    def _verdict(self, event: Event) -> None:
        if event["serves"] is None:
            self._say({"text": "no engine was certified: ONNX Runtime would serve"})
        elif not event["full"]:
            self._say({"text": f"the full ensemble has no engine: {event['serves']} would serve"})

    def _error(self, event: Event) -> None:
        tell_error(EngineError(str(event["message"])))

"""Events of a build: JSON lines for programs, words and bars for people."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn

from export.events import _Shown, display

if TYPE_CHECKING:
    from collections.abc import Iterator

    Event = dict[str, Any]

ENGINE = {
    "event": "engine",
    "graph": "full-fp16",
    "found": "built",
    "plan": "/var/lib/icecam/engines/0123.plan",
    "engine": {
        "schema": "icecam.engine/1",
        "origin": {
            "onnx_sha256": "0" * 64,
            "precision": "float16",
            "tensorrt": "10.3.0",
            "compute_capability": "8.7",
            "device": "Orin",
            "l4t": "36.4.3",
        },
        "plan_sha256": "1" * 64,
        "plan_bytes": 12_345_678,
        "built_at": "2026-11-24T12:22:04.925Z",
        "build_s": 321.4,
        "workspace_bytes": 512 << 20,
        "certification": {
            "engine": "trt",
            "graph": "full-fp16",
            "bundle_sha256": "2" * 64,
            "at": "2026-11-24T12:30:04.899Z",
            "passed": True,
            "frames": 4,
            "mask_agreement": 0.99812,
            "member_agreement": 0.99,
            "least_class_iou": 0.987,
            "least_class": "water",
            "coverage_difference": 0.0012,
            "not_numbers": 0,
            "median_s": 0.0214,
            "slowest_s": 0.03,
            "shortfalls": [],
        },
    },
}

CERTIFIED = (
    "  certified 2026-11-24 12:30 UTC on 4 golden frames: agreement 99.812% of the mask, least "
    "IoU water 0.987, ice fraction within 0.0012, 21 ms a frame"
)

ALL: list[Event] = [
    {"event": "say", "text": "[bold]not markup[/bold] [/oops]"},
    {"event": "progress", "phase": "Build", "parent": "", "step": 0, "steps": 3, "over": False},
    ENGINE,
    {"event": "refused", "graph": "full", "message": "because [/of] this", "certification": None},
    {"event": "verdict", "serves": "fallback", "full": False},
    {"event": "error", "message": "it broke off", "exit_code": 1},
]


def step(phase: str, parent: str, number: int, *, over: bool = False) -> Event:
    event = {"event": "progress", "phase": phase, "parent": parent, "step": number, "steps": 5}
    return {**event, "over": over}


class Terminal:
    """A terminal of 100 columns, what was written to it, and the bars that are on it now."""

    def __init__(self) -> None:
        self.text = io.StringIO()
        console = Console(file=self.text, force_terminal=True, width=100, color_system=None)
        self.progress = Progress(
            TextColumn("{task.description}"), MofNCompleteColumn(), console=console, disable=True
        )
        self.tell = _Shown(console, self.progress).tell

    @property
    def bars(self) -> list[str]:
        tasks = self.progress.tasks
        return [f"{task.description} {task.completed:g}/{task.total:g}" for task in tasks]


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    with terminal.progress:
        yield terminal


def test_as_json_every_event_is_one_line_in_order(capsys: pytest.CaptureFixture[str]) -> None:
    with display(as_json=True) as tell:
        for event in ALL:
            tell(event)
        lines = capsys.readouterr().out.splitlines()  # before the end: each was flushed
    assert [json.loads(line) for line in lines] == ALL


def test_a_person_reads_what_was_certified_refused_and_serves(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with display(as_json=False) as tell:
        for event in ALL:
            tell(event)
    told, error = capsys.readouterr()
    assert told.splitlines() == [
        "[bold]not markup[/bold] [/oops]",
        "✓ graph full-fp16: built; 12.3 MB, built in 321 s with a workspace of 512 MiB",
        CERTIFIED,
        "  /var/lib/icecam/engines/0123.plan",
        "✗ because [/of] this",
        "the full ensemble has no engine: fallback would serve",
    ]
    assert error == "error: it broke off\n"


def test_where_nothing_serves_it_is_said_what_would(capsys: pytest.CaptureFixture[str]) -> None:
    with display(as_json=False) as tell:
        tell({"event": "verdict", "serves": None, "full": False})
        tell({"event": "verdict", "serves": "full", "full": True})
    assert capsys.readouterr().out == "no engine was certified: ONNX Runtime would serve\n"


def test_phases_under_way_have_a_bar_each_inner_ones_indented(terminal: Terminal) -> None:
    terminal.tell(step("Building", "", 0))
    terminal.tell(step("Tactics [fp16]", "Building", 0))
    terminal.tell(step("Tactics [fp16]", "Building", 3))
    terminal.tell(step("Deeper", "Tactics [fp16]", 1))
    assert terminal.bars == ["Building 0/5", r"  Tactics \[fp16] 3/5", "    Deeper 1/5"]
    terminal.tell(step("Deeper", "Tactics [fp16]", 5, over=True))
    terminal.tell(step("Tactics [fp16]", "Building", 5, over=True))
    terminal.tell(step("Building", "", 1))
    assert terminal.bars == ["Building 1/5"]
    terminal.tell(step("Building", "", 5, over=True))
    terminal.tell(step("never begun", "Building", 5, over=True))
    assert terminal.bars == []


def test_bars_are_drawn_on_a_terminal_alone(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [step("Building", "", 0), step("Building", "", 4), {"event": "say", "text": "on"}]
    with display(as_json=False) as tell:
        for event in events:
            tell(event)
    assert capsys.readouterr().out == "on\n"
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    with display(as_json=False) as tell:
        for event in events:
            tell(event)
    drawn = capsys.readouterr().out
    assert "Building" in drawn
    assert "4/5" in drawn


def test_an_event_of_an_unknown_kind_is_passed_over(capsys: pytest.CaptureFixture[str]) -> None:
    with display(as_json=False) as tell:
        tell({"event": "thaw", "text": "soon"})
        tell({})
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "event",
    [
        {**ENGINE, "engine": {"schema": "icecam.engine/2"}},
        {**ENGINE, "engine": None},
        {"event": "progress", "phase": "Building"},
        {"event": "refused"},
    ],
)
def test_an_event_of_another_version_is_named_and_ends_nothing(
    capsys: pytest.CaptureFixture[str], event: Event
) -> None:
    with display(as_json=False) as tell:
        tell(event)
        tell({"event": "say", "text": "on"})
    *_, named, last = capsys.readouterr().out.splitlines()
    assert named.endswith(
        f"{event['event']}: told by another version of icecam, and not understood"
    )
    assert last == "on"


def test_a_graph_s_name_from_elsewhere_is_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    with display(as_json=False) as tell:
        tell({**ENGINE, "graph": "[/red]"})
    assert "✓ graph [/red]: built" in capsys.readouterr().out

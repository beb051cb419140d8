"""However it ends, nothing of a build is left on the other machine."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from edge.contract.errors import EngineError
from export.remote import run_there
from export.ssh import _OPTIONS
from tests.export.remote.sshd import PATIENCE_S, Station, until_true


def test_a_connection_that_is_cut_stops_the_build_and_is_named(
    station: Station, bundle: Path
) -> None:
    station.plays('tell("phase")\ntime.sleep(300)', child=True)

    def heed(_event: dict[str, Any]) -> None:
        station.cut()

    with pytest.raises(EngineError, match="the connection to jetson was lost"):
        run_there(station.configured(), bundle, [], heed=heed)
    station.assert_nothing_is_left()


def test_a_connection_that_falls_silent_is_named_and_its_build_stopped_once_it_is_noticed(
    station: Station, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(_OPTIONS, "ServerAliveInterval", "1")
    monkeypatch.setitem(_OPTIONS, "ServerAliveCountMax", "1")
    station.plays('tell("phase")\ntime.sleep(300)', child=True)

    def heed(_event: dict[str, Any]) -> None:
        station.cut(signal.SIGSTOP)

    with pytest.raises(EngineError, match="the connection to jetson was lost"):
        run_there(station.configured(), bundle, [], heed=heed)
    station.cut(signal.SIGCONT)
    station.assert_nothing_is_left()


def test_a_failure_here_stops_the_build_there(station: Station, bundle: Path) -> None:
    station.plays(
        "try:\n"
        '    tell("phase")\n'
        "    time.sleep(300)\n"
        "except KeyboardInterrupt:\n"
        '    (NOTES / "interrupted").touch()\n',
        child=True,
    )

    def heed(_event: dict[str, Any]) -> None:
        raise RuntimeError("a mistake here")

    with pytest.raises(RuntimeError, match="a mistake here"):
        run_there(station.configured(), bundle, [], heed=heed)
    assert (station.notes / "interrupted").exists(), "SIGINT lets the build unwind"
    assert list(station.temporary.iterdir()) == [], "waited for before the error is passed on"
    station.assert_nothing_is_left()


def test_a_build_that_is_deaf_to_sigint_is_killed(
    station: Station, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.remote._GRACE_S", 1)
    station.plays(
        'signal.signal(signal.SIGINT, signal.SIG_IGN)\ntell("phase")\ntime.sleep(300)', child=True
    )

    def heed(_event: dict[str, Any]) -> None:
        raise RuntimeError("a mistake here")

    with pytest.raises(RuntimeError, match="a mistake here"):
        run_there(station.configured(), bundle, [], heed=heed)
    station.assert_nothing_is_left()


HERE = """
import sys
from pathlib import Path
from export.remote import Remote, run_there
config, python, bundle = map(Path, sys.argv[1:])
remote = Remote(destination="jetson", python=str(python), ssh_config=config)
run_there(remote, bundle, [], heed=lambda event: print(event["event"], flush=True))
"""


def started_here(
    station: Station, bundle: Path, temporary: Path, *before: str, **streams: int
) -> subprocess.Popen[bytes]:
    """A program of its own that builds there."""
    config = station.configured().ssh_config
    words = [str(config), str(station.folder / "python"), str(bundle)]
    return subprocess.Popen(
        [*before, sys.executable, "-c", HERE, *words],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(temporary), "LC_ALL": "C"},
        **({"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_there_however_the_program_here_is_ended(
    station: Station, bundle: Path, temporary_here: Path, number: signal.Signals
) -> None:
    station.plays('tell("phase")\ntime.sleep(300)', child=True)
    with started_here(station, bundle, temporary_here) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"phase\n"
        assert list(station.temporary.iterdir()) != []
        program.send_signal(number)
        program.wait(PATIENCE_S)
        assert program.returncode == -number
    station.assert_nothing_is_left()


def test_nothing_is_left_there_where_the_program_is_killed_before_the_build(
    station: Station, bundle: Path, temporary_here: Path
) -> None:
    slow = f"#!/bin/sh\ntouch {station.notes}/probed\nsleep 1\n"
    (station.folder / "python").write_text(slow)
    with started_here(station, bundle, temporary_here) as program:
        until_true((station.notes / "probed").exists, "the first look at the Python there")
        assert list(station.temporary.iterdir()) != []
        program.kill()
        program.wait(PATIENCE_S)
    station.assert_nothing_is_left()
    assert not (station.notes / "called.json").exists()


def test_on_a_terminal_the_passphrase_is_asked_once_progress_is_shown_and_ctrl_c_stops_it(
    station: Station, bundle: Path, temporary_here: Path
) -> None:
    protect = ["ssh-keygen", "-q", "-p", "-N", "open sesame", "-f", f"{station.folder}/user"]
    subprocess.run(protect, check=True, timeout=30, stdout=subprocess.DEVNULL)
    station.plays('tell("phase")\ntime.sleep(300)', child=True)
    ours, theirs = os.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), theirs)
    with (
        os.fdopen(ours, "r+b", buffering=0) as terminal,
        started_here(station, bundle, temporary_here, "setsid", "--ctty", **streams) as program,
    ):
        os.close(theirs)
        said = read_until(terminal, b"Enter passphrase")
        terminal.write(b"open sesame\n")
        said += read_until(terminal, b"phase\r\n")
        terminal.write(b"\x03")
        program.wait(PATIENCE_S)
        assert program.returncode == -signal.SIGINT
    assert said.count(b"Enter passphrase") == 1
    assert b"0-ice.icecam" in said
    assert b"100%" in said
    assert list(station.temporary.iterdir()) == []
    assert list(temporary_here.iterdir()) == []
    station.assert_nothing_is_left()


def read_until(terminal: IO[bytes], words: bytes) -> bytes:
    """What a terminal shows up to and with these words."""
    said = b""
    while words not in said:
        ready, _, _ = select.select([terminal], [], [], PATIENCE_S)
        assert ready, said
        said += terminal.read(4096)
    return said


def test_it_loads_neither_torch_nor_what_trains() -> None:
    code = "import sys, export.remote; print(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    ).stdout.split()
    assert "export.remote" in said
    assert not {name.partition(".")[0] for name in said} & {"torch", "train", "numpy", "tensorrt"}

"""A build on another machine: what arrives there, and what is heard of it."""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from edge.contract.errors import ConfigError, EngineError
from export.remote import Remote, run_there
from tests.export.remote.sshd import ENDED, Station, ignore


def test_the_bundle_arrives_whole_and_its_copy_is_private_and_gone_afterwards(
    station: Station, bundle: Path
) -> None:
    events: list[dict[str, Any]] = []
    assert run_there(station.configured(), bundle, [], heed=events.append) == 0
    assert events == [{"event": "verdict", "passed": True}]
    assert station.called["sha256"] == hashlib.sha256(bundle.read_bytes()).hexdigest()
    assert station.called["mode"] == 0o700
    copy, json_option = station.called["arguments"]
    assert Path(copy).name == "ice.icecam"
    assert Path(copy).is_relative_to(station.temporary)
    assert json_option == "--json"
    station.assert_nothing_is_left()


def test_one_login_serves_for_everything(station: Station, bundle: Path) -> None:
    run_there(station.configured(), bundle, [], heed=ignore)
    assert station.log.count("Accepted publickey") == 1


def test_events_are_heard_in_order_while_the_build_still_runs(
    station: Station, bundle: Path
) -> None:
    station.plays(
        'for step in range(3):\n    tell("phase", step=step)\n    wait_for(f"heard {step}")\n'
        + ENDED
    )
    heard: list[dict[str, Any]] = []

    def heed(event: dict[str, Any]) -> None:
        heard.append(event)
        if event["event"] == "phase":  # only now the script goes on
            (station.notes / f"heard {event['step']}").touch()

    assert run_there(station.configured(), bundle, [], heed=heed) == 0
    assert [event.get("step") for event in heard] == [0, 1, 2, None]


def test_what_is_no_event_is_shown_as_it_is_but_steers_no_terminal(
    station: Station, bundle: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    station.plays(
        'print("plain words"); print("[1, 2]"); print(\'{"event": 7}\')\n'
        'print("[" * 200_000); print("\\033[2Jwiped"); tell("verdict"); print("no newline", end="")'
    )
    events: list[dict[str, Any]] = []
    assert run_there(station.configured(), bundle, [], heed=events.append) == 0
    assert events == [{"event": "verdict"}]
    out, err = capfd.readouterr()
    assert out == ""
    shown = [line for line in err.splitlines() if not line.startswith("[[")]
    assert shown == ["plain words", "[1, 2]", '{"event": 7}', "?[2Jwiped", "no newline"]


@pytest.mark.parametrize("event", ["error", "verdict"])
def test_an_exit_status_that_an_event_explains_is_returned(
    station: Station, bundle: Path, event: str
) -> None:
    station.plays(f'tell("{event}")\nsys.exit(3)')
    assert run_there(station.configured(), bundle, [], heed=ignore) == 3
    station.assert_nothing_is_left()


def test_an_exit_status_that_nothing_explains_is_an_error_with_the_last_words(
    station: Station, bundle: Path
) -> None:
    station.plays('tell("phase")\nprint("first", file=sys.stderr)\nsys.exit("no GPU is here")')
    with pytest.raises(EngineError, match=r"exit status 1, without.* why: no GPU is here"):
        run_there(station.configured(), bundle, [], heed=ignore)
    station.assert_nothing_is_left()


def test_a_build_that_is_killed_there_is_named_with_the_likely_reason(
    station: Station, bundle: Path
) -> None:
    station.plays("os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(EngineError, match="ended by signal 9, as happens where memory runs out"):
        run_there(station.configured(), bundle, [], heed=ignore)
    station.assert_nothing_is_left()


NASTY = [
    "",
    "two words",
    "it's",
    '"quoted"',
    "$(touch {canary})",
    "`touch {canary}`",
    "; touch {canary} #",
    "& touch {canary} &",
    "| touch {canary}",
    "a\ntouch {canary}\nb",
    "'; touch {canary}; '",
    "\\'; touch {canary}; \\'",
    "-oProxyCommand=touch {canary}",
    "--",
    "-",
    "*",
    "~",
    "$HOME",
    "${{IFS}}",
    "!!",
    "\\",
    "\t",
    "\x7f\x1b[2J",
    "ᐃᒡᓗᓕᒃ",
    "\udcff",
    "x" * 100_000,
]


def test_arguments_arrive_as_they_are_and_run_nothing(
    station: Station, bundle: Path, tmp_path: Path
) -> None:
    canary = tmp_path / "canary"
    arguments = [one.format(canary=canary) for one in NASTY]
    assert run_there(station.configured(), bundle, arguments, heed=ignore) == 0
    assert station.called["arguments"][1:] == ["--json", *arguments]
    assert not canary.exists()


@pytest.mark.parametrize(
    "name",
    [
        "-oProxyCommand=touch canary-of-icecam",
        "$(touch canary-of-icecam)",
        "`touch canary-of-icecam`",
        "a; touch canary-of-icecam; b",
        "two words 'and' \"quotes\"",
        "host:path",
        "a\ntouch canary-of-icecam\nb",
        "\\",
        "ᐃᒡᓗᓕᒃ" * 17,
    ],
)
def test_a_bundle_keeps_its_name_there_whatever_it_is(
    station: Station, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(b"any bytes")
    assert run_there(station.configured(), Path(name), [], heed=ignore) == 0
    assert Path(station.called["arguments"][0]).name == name
    assert station.called["sha256"] == hashlib.sha256(b"any bytes").hexdigest()
    for folder in (Path.cwd(), Path.home(), station.temporary):
        assert not (folder / "canary-of-icecam").exists()


def test_files_among_the_arguments_are_copied_and_named_by_their_place_there(
    station: Station, bundle: Path, tmp_path: Path
) -> None:
    keys = [tmp_path / folder / "it's a key.pub" for folder in "ab"]
    for key in keys:
        key.parent.mkdir()
        key.write_text(f"key {key.parent.name}")
    station.plays("tell('verdict', keys=[Path(sys.argv[at]).read_text() for at in (6, 8)])")
    events: list[dict[str, Any]] = []
    arguments = ["--trust", keys[0], "--trust", keys[1]]
    assert run_there(station.configured(), bundle, arguments, heed=events.append) == 0
    assert events == [{"event": "verdict", "keys": ["key a", "key b"]}]
    assert [Path(station.called["arguments"][at]).name for at in (3, 5)] == ["it's a key.pub"] * 2


@pytest.mark.parametrize("name", ["a b/it's $(touch canary-of-icecam); `x`/python", "-m/python"])
def test_the_python_there_may_lie_anywhere(station: Station, bundle: Path, name: str) -> None:
    python = station.folder / name
    station.plays(ENDED, at=python)
    remote = station.configured()
    remote = Remote(destination="jetson", python=str(python), ssh_config=remote.ssh_config)
    assert run_there(remote, bundle, [], heed=ignore) == 0
    assert not (Path.home() / "canary-of-icecam").exists()


def test_a_tilde_before_the_python_is_the_home_folder_there(station: Station, bundle: Path) -> None:
    python = os.path.relpath(station.folder / "python", Path.home())
    config = station.configured().ssh_config
    remote = Remote(destination="jetson", python=f"~/{python}", ssh_config=config)
    assert run_there(remote, bundle, [], heed=ignore) == 0


@pytest.mark.parametrize("python", ["/nowhere/python", "nowhere-in-path", "-c", "/", "/dev/null"])
def test_a_python_that_cannot_be_run_there_is_named_before_anything_is_copied(
    station: Station, bundle: Path, python: str
) -> None:
    config = station.configured().ssh_config
    remote = Remote(destination="jetson", python=python, ssh_config=config)
    with pytest.raises(ConfigError, match=r"cannot be run on jetson.*Nothing was copied"):
        run_there(remote, bundle, [], heed=ignore)
    assert "sftp" not in station.log
    station.assert_nothing_is_left()


def test_a_python_without_icecam_is_told_apart_by_what_to_install(
    station: Station, bundle: Path
) -> None:
    (station.folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    with pytest.raises(
        EngineError, match=r"icecam is not installed.*No module named 'export'"
    ) as e:
        run_there(station.configured(), bundle, [], heed=ignore)
    assert "--system-site-packages" in e.value.then
    assert "pip install 'icecam[jetson]'" in e.value.then
    station.assert_nothing_is_left()


def test_a_module_that_does_not_start_there_is_told_with_its_last_words(
    station: Station, bundle: Path
) -> None:
    (station.folder / "python").write_text("#!/bin/sh\necho 'Illegal instruction' >&2; exit 132\n")
    with pytest.raises(EngineError, match=r"status 132 on jetson: Illegal instruction"):
        run_there(station.configured(), bundle, [], heed=ignore)


def test_a_full_disk_is_told_with_figures_before_anything_is_copied(
    station: Station, bundle: Path
) -> None:
    disk = os.statvfs(station.temporary)
    free_bytes = disk.f_bavail * disk.f_frsize
    os.truncate(bundle, free_bytes + 10**9)  # sparse: it takes no room itself
    wanted = f"{bundle.stat().st_size / 1e6:.1f} MB"
    with pytest.raises(EngineError, match=rf"has [0-9.]+ MB free; expected {wanted}") as error:
        run_there(station.configured(), bundle, [], heed=ignore)
    told = float(error.value.found.split()[-3])
    assert told == pytest.approx(free_bytes / 1e6, abs=500)
    station.assert_nothing_is_left()

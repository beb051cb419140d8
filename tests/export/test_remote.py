"""A build on another machine: a real sshd on loopback, with a script in the Python's place."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import pytest

from edge.contract.errors import ConfigError, EngineError, IcecamError
from export.remote import Remote, run_there
from export.ssh import _OPTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LOOPBACK = "127.0.0.1"
PATIENCE_S = 20.0
ENDED = 'tell("verdict", passed=True)\n'

# What stands in for the Python there: `-m export.trt` only, which notes how it was called.
PLAYED = """\
#!{python}
import hashlib, json, os, signal, subprocess, sys, time
from pathlib import Path

NOTES = Path({notes!r})

def tell(event, **more):
    print(json.dumps({{"event": event, **more}}))

def wait_for(name):
    until = time.monotonic() + {patience_s}
    while not (NOTES / name).exists():
        if time.monotonic() > until:
            sys.exit(f"{{name}} never came")
        time.sleep(0.01)

if sys.argv[1:3] != ["-m", "export.trt"]:
    sys.exit("not the module that was expected")
if sys.argv[3:] == ["--help"]:
    sys.exit(0)
bundle = Path(sys.argv[3])
child = subprocess.Popen(["sleep", "300"]) if {child} else None
note = {{
    "arguments": sys.argv[3:],
    "sha256": hashlib.sha256(bundle.read_bytes()).hexdigest(),
    "pids": [os.getpid(), *([child.pid] if child else [])],
    "mode": bundle.parent.parent.stat().st_mode & 0o777,
}}
(NOTES / "noting").write_text(json.dumps(note))
(NOTES / "noting").rename(NOTES / "called.json")
{body}
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Station:
    """A machine to reach as `jetson`; `temporary` is where its temporary files go."""

    folder: Path
    port: int
    sshd: subprocess.Popen[bytes]

    @property
    def temporary(self) -> Path:
        return self.folder / "temporary"

    @property
    def notes(self) -> Path:
        return self.folder / "notes"

    @property
    def log(self) -> str:
        return (self.folder / "sshd.log").read_text()

    @property
    def called(self) -> dict[str, Any]:
        """How the Python there was called."""
        noted: dict[str, Any] = json.loads((self.notes / "called.json").read_text())
        return noted

    def configured(self, *, destination: str = "jetson", more: str = "", **changes: str) -> Remote:
        """Write the ssh configuration and name what is there; `changes` are its keywords."""
        words = {
            "HostName": LOOPBACK,
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": str(self.folder / "user"),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.folder / "known_hosts"),
            "GlobalKnownHostsFile": "/dev/null",
        } | changes
        lines = [f"{keyword} {value}" for keyword, value in words.items()]
        config = self.folder / "ssh_config"
        config.write_text("\n".join(["Host jetson", *lines, more, ""]))
        return Remote(
            destination=destination, python=str(self.folder / "python"), ssh_config=config
        )

    def plays(self, body: str, *, child: bool = False, at: Path | None = None) -> None:
        """Put a script in the place of the Python there."""
        program = at or self.folder / "python"
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            PLAYED.format(
                python=sys.executable,
                notes=str(self.notes),
                patience_s=PATIENCE_S,
                child=child,
                body=body,
            )
        )
        program.chmod(0o755)

    def assert_nothing_is_left(self) -> None:
        """Neither a process that was started there, nor a file, nor a connection."""
        if (self.notes / "called.json").exists():
            pids = self.called["pids"]
            until_true(lambda: not any(is_running(pid) for pid in pids), "the build's end")
        until_true(lambda: not list(self.temporary.iterdir()), "the removal of the folder")
        until_true(lambda: not of_sshd(self.sshd.pid), "the end of the connection", 30)

    def cut(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to every process of sshd that serves a connection; by default end it."""
        for pid in of_sshd(self.sshd.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


def until_true(holds: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    until = time.monotonic() + patience_s
    while not holds():
        if time.monotonic() > until:
            pytest.fail(f"waited {patience_s:g} s in vain for {what}")
        time.sleep(0.05)


def status_of(pid: int) -> tuple[str, str, int] | None:
    """Name, state and parent of a process, or None where there is none."""
    with suppress(OSError):
        before, _, after = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
        state, parent = after.split()[:2]
        return before.partition("(")[2], state, int(parent)
    return None


def is_running(pid: int) -> bool:
    status = status_of(pid)
    return status is not None and status[1] != "Z"


def of_sshd(parent: int) -> list[int]:
    """Every process of sshd below this one that still runs."""
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    found = [
        pid
        for pid in pids
        if (status := status_of(pid))
        and status[0].startswith("sshd")
        and status[1] != "Z"
        and status[2] == parent
    ]
    return [*found, *(below for pid in found for below in of_sshd(pid))]


def keygen(path: Path) -> str:
    """Make an Ed25519 key; return the public half."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True, timeout=30)
    return path.with_suffix(".pub").read_text()


def need(program: str, package: str) -> str:
    found = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/bin")
    if found is None:
        pytest.fail(f"no {program} in PATH or /usr/sbin: apt-get install {package}")
    return found


@pytest.fixture
def station(tmp_path: Path, free_port: int) -> Iterator[Station]:
    """A machine that is reached over a real sshd of the test's own."""
    sshd = need("sshd", "openssh-server")
    need("ssh", "openssh-client")
    folder = tmp_path / "station"
    for path in (folder, folder / "temporary", folder / "notes"):
        path.mkdir()
    host_key = keygen(folder / "host")
    (folder / "authorized_keys").write_text(keygen(folder / "user"))
    (folder / "known_hosts").write_text(f"[{LOOPBACK}]:{free_port} {host_key}")
    (folder / "sshd_config").write_text(
        f"ListenAddress {LOOPBACK}\nPort {free_port}\nHostKey {folder}/host\nPidFile none\n"
        f"AuthorizedKeysFile {folder}/authorized_keys\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        f"Subsystem sftp internal-sftp\nSetEnv TMPDIR={folder}/temporary\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    command = [sshd, "-D", "-f", str(folder / "sshd_config"), "-E", str(folder / "sshd.log")]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    station = Station(folder=folder, port=free_port, sshd=process)
    try:
        until_true(lambda: process.poll() is not None or is_listening(free_port), "sshd")
        assert process.poll() is None, station.log
        station.plays(ENDED)
        yield station
    finally:
        station.cut()
        process.kill()
        process.wait()


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A file of 3 MB that is like no other; what is in it is not looked at."""
    path = tmp_path / "ice.icecam"
    path.write_bytes(random.Random(4).randbytes(3_000_000))
    return path


def ignore(_event: dict[str, Any]) -> None:
    """Heed nothing."""


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


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "-oProxyCommand=touch x",
        "-oProxyCommand=x@jetson",
        "user@-oProxyCommand=x",
        "ssh://-oProxyCommand=x",
        "jet son",
        "jetson;id",
        "jetson\n",
        "$(id)@jetson",
        "`id`",
        "user@",
        "@jetson",
        "jetson:2222",
        "ssh://jetson:0",
        "ssh://jetson:65536",
        "ssh://jetson:",
        "ssh://jetson/folder",
        "http://jetson",
        "[::1",
        "[1.2.3.4]",
        "[::1]:22",
        "ssh://[::g]",
        "fe80::1",
        "jetson/folder",
        "jetson\0",
        "ssh://jetson:٢٢",
    ],
)
def test_what_is_no_machine_is_refused_before_anything_is_started(destination: str) -> None:
    with pytest.raises(ConfigError, match="is not a machine to reach by ssh"):
        Remote(destination=destination)


@pytest.mark.parametrize(
    ("destination", "login", "port", "folder"),
    [
        ("jetson", "jetson", None, "jetson:/x/"),
        ("ice@10.0.0.7", "ice@10.0.0.7", None, "ice@10.0.0.7:/x/"),
        ("ice@lab@jetson", "ice@lab@jetson", None, "ice@lab@jetson:/x/"),
        ("ssh://ice@jetson.local:2222", "ice@jetson.local", 2222, "ice@jetson.local:/x/"),
        ("ssh://jetson", "jetson", None, "jetson:/x/"),
        ("ice@[fe80::1%usb0]", "ice@fe80::1%usb0", None, "ice@[fe80::1%usb0]:/x/"),
        ("ssh://[::1]:22", "::1", 22, "[::1]:/x/"),
    ],
)
def test_a_destination_is_taken_apart(
    destination: str, login: str, port: int | None, folder: str
) -> None:
    remote = Remote(destination=destination)
    assert (remote.login, remote.port, remote.folder("/x")) == (login, port, folder)


def test_an_address_with_user_and_port_is_reached_as_well(station: Station, bundle: Path) -> None:
    destination = f"ssh://{getpass.getuser()}@{LOOPBACK}:{station.port}"
    remote = station.configured(destination=destination, more="Host *")
    config = station.folder / "ssh_config"
    config.write_text(
        config.read_text()
        + f"IdentityFile {station.folder}/user\nUserKnownHostsFile {station.folder}/known_hosts\n"
    )
    assert run_there(remote, bundle, [], heed=ignore) == 0


def test_habits_in_the_ssh_configuration_do_not_get_in_the_way(
    station: Station, bundle: Path
) -> None:
    habits = {
        "RequestTTY": "force",
        "RemoteCommand": "tmux attach",
        "ControlMaster": "no",
        "ControlPath": "none",
        "StrictHostKeyChecking": "no",
        "LocalForward": f"{LOOPBACK}:{station.port} {LOOPBACK}:1",
        "ExitOnForwardFailure": "yes",
        "PermitLocalCommand": "yes",
        "LocalCommand": f"touch {station.notes}/local",
    }
    assert run_there(station.configured(**habits), bundle, [], heed=ignore) == 0
    assert not (station.notes / "local").exists()


def refused(station: Station, bundle: Path, **changes: str) -> IcecamError:
    """What a refused connection is told as; nothing was run there."""
    with pytest.raises(IcecamError) as error:
        run_there(station.configured(**changes), bundle, [], heed=ignore)
    assert not (station.notes / "called.json").exists()
    return error.value


def test_an_unknown_host_key_is_refused_even_where_the_configuration_would_take_it(
    station: Station, bundle: Path
) -> None:
    (station.folder / "known_hosts").write_text("")
    error = refused(station, bundle, StrictHostKeyChecking="no")
    assert str(error).startswith("the host key of jetson is unknown")
    assert error.then.endswith("ssh jetson")
    assert (station.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key_is_refused_by_name(station: Station, bundle: Path) -> None:
    other = keygen(station.folder / "other")
    (station.folder / "known_hosts").write_text(f"[{LOOPBACK}]:{station.port} {other}")
    error = refused(station, bundle, StrictHostKeyChecking="no", LogLevel="QUIET")
    assert str(error).startswith("the host key of jetson has CHANGED")


def test_a_key_that_is_not_accepted_is_named_as_a_refused_login(
    station: Station, bundle: Path
) -> None:
    keygen(station.folder / "stranger")
    error = refused(station, bundle, IdentityFile=str(station.folder / "stranger"))
    assert str(error).startswith("jetson refused the login: ")
    assert "Permission denied (publickey)" in error.found


def test_a_machine_that_does_not_answer_is_named_with_what_ssh_says(
    station: Station, bundle: Path
) -> None:
    station.sshd.kill()
    station.sshd.wait()
    error = refused(station, bundle)
    assert str(error).startswith("no connection to jetson: ")
    assert "Connection refused" in error.found


def test_a_name_that_nobody_knows_is_told_with_what_ssh_says(
    station: Station, bundle: Path
) -> None:
    error = refused(station, bundle, HostName="no-such-machine.invalid")
    assert "Could not resolve hostname" in error.found


@pytest.mark.parametrize("program", ["ssh", "scp"])
def test_a_program_that_is_missing_here_is_named(
    station: Station, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    other = {"ssh": "scp", "scp": "ssh"}[program]
    (programs / other).symlink_to(need(other, "openssh-client"))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match=f"^{program} is not installed.*openssh-client"):
        run_there(station.configured(), bundle, [], heed=ignore)


def test_a_bundle_that_is_not_there_or_no_file_is_named(station: Station, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.icecam", tmp_path):
        with pytest.raises(ConfigError, match="is not a file that can be read"):
            run_there(station.configured(), path, [], heed=ignore)
    assert "Accepted" not in station.log


def test_an_argument_that_no_program_can_take_is_named(station: Station, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="holds a NUL character"):
        run_there(station.configured(), bundle, ["a\0b"], heed=ignore)


def test_a_copy_that_fails_half_way_is_named_and_removed(station: Station, bundle: Path) -> None:
    station.configured()
    config = (station.folder / "sshd_config").read_text()
    (station.folder / "sshd_config").write_text(config.replace("internal-sftp", "/bin/false"))
    station.sshd.send_signal(signal.SIGHUP)  # it reads its configuration anew
    until_true(lambda: "Received SIGHUP" in station.log, "the new configuration")
    until_true(lambda: is_listening(station.port), "sshd")
    error = refused(station, bundle)
    assert str(error).startswith("copying to jetson failed: ")
    station.assert_nothing_is_left()


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


@pytest.fixture
def temporary_here() -> Iterator[Path]:
    """A folder for temporary files on this side, as short as a socket needs it."""
    with tempfile.TemporaryDirectory(prefix="icecam-test-") as folder:
        yield Path(folder)


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

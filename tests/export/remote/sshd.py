"""A real sshd on loopback, and a Python there that plays ``export.trt``."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from export.remote import Remote

if TYPE_CHECKING:
    from collections.abc import Callable

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


def is_listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((LOOPBACK, port)) == 0


def ignore(_event: dict[str, Any]) -> None:
    """Heed nothing."""

"""A connection to another machine by the system's own ssh and scp.

It is opened in the foreground, so that ssh can ask for a password once; all that follows shares it.
Host keys are always checked. A link that falls silent counts as lost after a minute.
"""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import deque
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, cast

from edge.contract.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_DESTINATION = re.compile(
    r"(?P<scheme>ssh://)?"
    r"((?P<user>[A-Za-z0-9_.][A-Za-z0-9_.@+-]*)@)?"
    r"(\[(?P<ipv6>[0-9A-Fa-f:.]+(%[A-Za-z0-9_.-]+)?)\]|(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*))"
    r"(:(?P<port>[0-9]{1,5}))?"
)
_PORTS = range(1, 65536)
_IPV6 = 6
_SHORT_FOLDER = re.compile(r"/[A-Za-z0-9._/-]{1,50}")
_PERSIST_S = 5
_KEPT_LINES = 20
_LONGEST_LINE = 1 << 20
_LAST_WORDS_S = 2.0
_STDERR = 2
_OPTIONS = {
    "StrictHostKeyChecking": "yes",
    "ConnectTimeout": "15",
    "ServerAliveInterval": "15",
    "ServerAliveCountMax": "4",
    # What a person's own configuration may set for work by hand.
    "ClearAllForwardings": "yes",
    "ForwardAgent": "no",
    "ForwardX11": "no",
    "LogLevel": "INFO",
    "PermitLocalCommand": "no",
    "RemoteCommand": "none",
    "RequestTTY": "no",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """Another machine, and the Python that holds icecam there.

    ``destination``: ``host``, ``user@host`` or ``ssh://user@host:port``; an IPv6 address stands in
    brackets; the host may be a name of the ssh configuration. ``python``: a name or path there; a
    leading ``~/`` is the home folder there. ``ssh_config``: a file to use instead of the user's.
    Raises ConfigError.
    """

    destination: str
    python: str = "python3"
    ssh_config: Path | None = None
    login: str = field(init=False)
    port: int | None = field(init=False)

    def __post_init__(self) -> None:
        """Take the destination apart: ``login`` is user and host as ssh takes them."""
        found = _DESTINATION.fullmatch(self.destination)
        if found is None or not _is_reachable(found["scheme"], found["ipv6"], found["port"]):
            raise ConfigError(
                f"{self.destination!r} is not a machine to reach by ssh",
                expected="user@host, or ssh://user@host:port where the port is not 22",
                then="Nothing was contacted.",
            )
        if not self.python or "\0" in self.python:
            raise ConfigError(
                f"{self.python!r} names no program",
                expected=f"the Python to run on {self.destination}",
                then="Nothing was contacted.",
            )
        user = f"{found['user']}@" if found["user"] else ""
        object.__setattr__(self, "login", user + (found["ipv6"] or found["name"]))
        object.__setattr__(self, "port", int(found["port"]) if found["port"] else None)

    def folder(self, path: str) -> str:
        """Name a folder there as scp takes it."""
        user, at, host = self.login.rpartition("@")
        return f"{user}{at}[{host}]:{path}/" if ":" in host else f"{self.login}:{path}/"


def _is_reachable(scheme: str | None, ipv6: str | None, port: str | None) -> bool:
    if port is not None and (scheme is None or int(port) not in _PORTS):
        return False
    with suppress(ValueError):
        return ipv6 is None or ipaddress.ip_address(ipv6).version == _IPV6
    return False


@dataclass(frozen=True, kw_only=True, slots=True)
class Link:
    """An open connection. ``_options`` are those that ssh and scp share."""

    remote: Remote
    _folder: Path
    _options: tuple[str, ...]

    def shell(self) -> subprocess.Popen[bytes]:
        """Start a shell there that reads commands from its standard input.

        It is out of the terminal's reach: Ctrl-C does not end it.
        """
        return subprocess.Popen(  # noqa: S603 - fixed words and a host that was checked
            ["ssh", *self._options, "--", self.remote.login, "exec sh"],  # noqa: S607 - from PATH
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def copy(self, files: Mapping[str, Path], path: str) -> None:
        """Copy files into a folder there, under the names that are their keys.

        Names and ``path`` must be of plain characters alone: an older scp gives them to a shell.
        Progress is shown where stderr is a terminal. Raises EngineError.
        """
        sources = [self._folder / name for name in files]
        for source, file in zip(sources, files.values(), strict=True):
            source.symlink_to(file.resolve())
        status, tail = _run(
            ["scp", *self._options, "--", *map(str, sources), self.remote.folder(path)],
            stdout=_STDERR if os.isatty(_STDERR) else subprocess.DEVNULL,
        )
        if status:
            raise EngineError(
                f"copying to {self.remote.destination} failed{tail.because()}",
                then="What was copied is removed there; nothing was built.",
            )


@contextmanager
def connected(remote: Remote) -> Iterator[Link]:
    """Hold a connection open. Raises ConfigError, EngineError.

    Left alone, as after SIGKILL here, it ends 5 s after its last use.
    """
    for program in ("ssh", "scp"):
        if shutil.which(program) is None:
            raise ConfigError(
                f"{program} is not installed",
                expected="OpenSSH's ssh and scp",
                then="Install them: sudo apt-get install openssh-client",
            )
    with tempfile.TemporaryDirectory(prefix="icecam-", dir=_short_folder()) as folder:
        options = tuple(_options(remote, folder))
        shared = ["-oControlMaster=yes", f"-oControlPersist={_PERSIST_S}", "-f", "-N"]
        status, tail = _run(
            ["ssh", *options, *shared, "--", remote.login], stdout=subprocess.DEVNULL
        )
        if status:
            raise _not_connected(remote, tail)
        try:
            yield Link(remote=remote, _folder=Path(folder), _options=options)
        finally:
            _disconnect(["ssh", *options, "-O", "exit", "--", remote.login])


def _short_folder() -> str:
    """Return where a socket can lie: its path is short, and plain to ssh."""
    usual = tempfile.gettempdir()
    return usual if _SHORT_FOLDER.fullmatch(usual) else "/tmp"  # noqa: S108 - only to be private in


def _options(remote: Remote, folder: str) -> Iterator[str]:
    if remote.ssh_config is not None:
        yield from ("-F", str(remote.ssh_config.resolve()))
    if remote.port is not None:
        yield f"-oPort={remote.port}"
    yield f"-oControlPath={folder}/link"
    yield from (f"-o{name}={value}" for name, value in _OPTIONS.items())


def _run(command: list[str], *, stdout: int) -> tuple[int, Tail]:
    """Run ssh or scp in the foreground, where both may use the terminal; return its status."""
    process = subprocess.Popen(  # noqa: S603 - fixed words and a host that was checked
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE
    )
    tail = Tail(cast("IO[bytes]", process.stderr))
    try:
        return process.wait(), tail
    except BaseException:
        process.terminate()
        process.wait()
        raise


def _disconnect(command: list[str]) -> None:
    subprocess.run(  # noqa: S603 - fixed words and a host that was checked
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        check=False,
    )


def _not_connected(remote: Remote, tail: Tail) -> EngineError:
    """Name what ssh refused, by its own words."""
    said, name = "\n".join(tail.lines()), remote.destination
    if "IDENTIFICATION HAS CHANGED" in said or "has changed and you have requested" in said:
        return EngineError(
            f"the host key of {name} has CHANGED",
            expected="the key that is known for it",
            then="Either the machine was set up anew, or another one answers in its place. Find "
            f"out which; only then remove the old key with ssh-keygen -R and run: ssh {name}",
        )
    if "host key is known for" in said:
        return EngineError(
            f"the host key of {name} is unknown",
            expected="one that you have compared and accepted before",
            then=f"Run this once, and compare the fingerprint: ssh {name}",
        )
    if "Permission denied" in said or "Too many authentication failures" in said:
        return EngineError(
            f"{name} refused the login{tail.because()}",
            expected="a user, and a key or password that it accepts",
            then=f"Try by hand: ssh {name}",
        )
    return EngineError(f"no connection to {name}{tail.because()}", then=f"Try by hand: ssh {name}")


class Tail:
    """What a program says on stderr: passed on to ours, its last lines kept."""

    def __init__(self, stream: IO[bytes]) -> None:
        """Read until the stream ends, in a thread."""
        self._kept: deque[str] = deque(maxlen=_KEPT_LINES)
        self._thread = threading.Thread(target=self._read, args=[stream], daemon=True)
        self._thread.start()

    def lines(self) -> list[str]:
        """Return the last lines of a program that has ended.

        Waits for no more than a moment: an older ssh in the background keeps its stderr open.
        """
        self._thread.join(_LAST_WORDS_S)
        return list(self._kept)

    def because(self) -> str:
        """Return the last line of a program that has ended as a clause: `: LINE`, or nothing."""
        return "".join(f": {line}" for line in self.lines()[-1:])

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in lines(stream):
                self._kept.append(line)
                show(line)


def lines(stream: IO[bytes]) -> Iterator[str]:
    """Yield what is said line by line as it arrives, empty lines left out, 1 MiB at most each."""
    for raw in iter(lambda: stream.readline(_LONGEST_LINE), b""):
        line = raw.decode(errors="replace").rstrip()
        if line:
            yield line


def show(line: str) -> None:
    """Pass a line on to stderr; another machine must not steer this terminal."""
    plain = "".join(sign if sign.isprintable() or sign == "\t" else "?" for sign in line)
    sys.stderr.write(f"{plain}\n")
    sys.stderr.flush()

"""A build on another machine, over ssh.

One shell there supervises all of it: it makes a private folder, waits while the files are copied
into it, runs the build, and removes the folder. It does so too when its standard input ends, and
that ends with whatever happens here: Ctrl-C, a crash, SIGKILL, a connection that is lost. The build
then gets SIGINT and, where it is deaf to that, SIGKILL.

The login shell there only ever reads ``exec sh``. The rest is a POSIX shell script on the standard
input, in which every argument is quoted, and which runs only once it has arrived whole.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

from edge.contract.errors import ConfigError, EngineError, IcecamError
from export.ssh import Remote, Tail, connected, lines, show

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Sequence

    from export.ssh import Link

__all__ = ["Remote", "run_there"]

_GRACE_S = 10
_PLAIN_FOLDER = re.compile(r"/[A-Za-z0-9._+/-]+")
_FREE = re.compile(r"\s[0-9]+\s+[0-9]+\s+(?P<kib>[0-9]+)\s+[0-9]+%\s")
_NOT_EXECUTABLE, _NOT_FOUND, _SIGNALLED, _SIGKILL = 126, 127, 128, 9
_EXPLAINING = frozenset({"error", "verdict"})

# Lines that name the Python, the files and the arguments stand before and between these parts.
_PREPARE = r"""
umask 077
trap '' PIPE
exec 3<&0 </dev/null
export PYTHONUNBUFFERED=1
base=${TMPDIR:-/var/tmp}
[ -d "$base" ] && [ -w "$base" ] || base=/tmp
here=$(mktemp -d "$base/icecam-XXXXXXXXXX") || exit
trap 'rm -rf "$here"' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
"$python" -m export.trt --help >/dev/null 3<&- || { printf '%s unfit %s\n' "$mark" "$?"; exit; }
printf '%s ready %s %s\n' "$mark" "$here" "$(df -Pk "$here" | tail -n 1)"
read -r go <&3 || exit
"""
# setsid makes the build lead a process group, so that its children get the signals too. The build
# runs in the foreground because a shell starts what runs in the background deaf to SIGINT.
_BUILD = r"""
send() { kill -s "$1" -- "-$build" || kill -s "$1" "$build"; }
(
  while read -r more; do :; done <&3
  until build=$(cat "$here/pid") && [ -n "$build" ]; do sleep 1; done
  send INT
  while [ "$grace_s" -gt 0 ]; do sleep 1; grace_s=$((grace_s - 1)); done
  send KILL
) >/dev/null 2>&1 &
watch=$!
! command -v setsid >/dev/null || set -- setsid "$@"
sh -c 'echo "$$" >"$0/pid" && exec "$@"' "$here" "$@" 3<&-
status=$?
kill "$watch"
rm -rf "$here"
printf '\n%s ended %s\n' "$mark" "$status"
exit
"""


def run_there(
    remote: Remote,
    bundle: Path,
    arguments: Sequence[str | Path],
    *,
    heed: Callable[[dict[str, Any]], None],
) -> int:
    """Run ``python -m export.trt BUNDLE --json ARGUMENTS`` on another machine.

    An argument that is a Path is a file of this machine: it is copied beside the bundle, and the
    argument becomes its path there. ``heed`` takes each event as it arrives, in order; whatever
    else is said there goes to our stderr. Returns the exit status, which an ``error`` or
    ``verdict`` event has explained where it is not 0.

    Raises ConfigError where ssh, a file or the Python there is missing, and EngineError where the
    machine cannot be reached or trusted, is full, lacks icecam, is lost, or gives no reason.
    """
    files = _files([bundle, *(one for one in arguments if isinstance(one, Path))])
    mark = f"icecam-{secrets.token_hex(8)}"
    script = _script(mark, remote.python, files, arguments)
    with connected(remote) as link, _supervised(link, script, mark) as shell:
        folder = _prepared(shell, remote, sum(one.path.stat().st_size for one in files))
        link.copy({one.plain: one.path for one in files}, folder)
        shell.send(b"go\n")
        return _followed(shell, remote, heed)


@dataclass(frozen=True, kw_only=True, slots=True)
class _File:
    """A file that is copied under a plain name, then moved to its own in a folder of its own."""

    path: Path
    plain: str
    folder: str

    @property
    def place(self) -> str:
        """Where it lies there in the end, as a word of the script."""
        return f"{self.folder}/{shlex.quote(self.path.name)}"

    def moved(self) -> str:
        """Return the script's line that moves it there."""
        return f'mkdir {self.folder} && mv "$here"/{self.plain} {self.place} || exit'


def _files(paths: Sequence[Path]) -> list[_File]:
    """Name what is copied. Raises ConfigError."""
    files = []
    for number, path in enumerate(paths):
        if not os.access(path, os.R_OK) or not path.is_file():
            raise ConfigError(
                f"{path} is not a file that can be read",
                expected="a file to copy",
                then="Nothing was copied.",
            )
        plain = re.sub(r"[^A-Za-z0-9._-]", "_", path.name)[-100:]
        files.append(_File(path=path, plain=f"{number}-{plain}", folder=f'"$here"/{number}'))
    return files


def _script(
    mark: str, python: str, files: Sequence[_File], arguments: Sequence[str | Path]
) -> bytes:
    """Return the supervising script: one compound command, so that a part of it runs nothing."""
    copied = iter(files[1:])
    words = [next(copied).place if isinstance(one, Path) else _quoted(one) for one in arguments]
    home, path = ('"$HOME"/', python[2:]) if python.startswith("~/") else ("", python)
    script = [
        "{",
        f"mark={mark} grace_s={_GRACE_S} python={home}{shlex.quote(path)}",
        _PREPARE,
        *(one.moved() for one in files),
        " ".join(['set -- "$python" -m export.trt', files[0].place, "--json", *words]),
        _BUILD,
        "}\n",
    ]
    return os.fsencode("\n".join(script))


def _quoted(argument: str) -> str:
    if "\0" in argument:
        raise ConfigError(f"the argument {argument!r} holds a NUL character")
    return shlex.quote(argument)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Shell:
    """The supervising shell: it stops the build, cleans up and ends when its input does."""

    process: subprocess.Popen[bytes]
    tail: Tail
    mark: str

    def send(self, words: bytes) -> None:
        """Write to its input; where it is gone already, the end of its output tells."""
        stdin = cast("IO[bytes]", self.process.stdin)
        with suppress(BrokenPipeError):
            stdin.write(words)
            stdin.flush()

    def lines(self) -> Iterator[tuple[str, str]]:
        """Yield (word, rest) for each line of the script's own, ("", line) for any other."""
        for line in lines(cast("IO[bytes]", self.process.stdout)):
            if line.startswith(f"{self.mark} "):
                _, word, rest = line.split(" ", 2)
                yield word, rest
            else:
                yield "", line

    def release(self) -> Tail:
        """End its input, wait until it has ended, and return what it said on stderr last."""
        deadline = threading.Timer(_GRACE_S + 5, self.process.kill)
        deadline.start()
        try:
            with suppress(BrokenPipeError):
                cast("IO[bytes]", self.process.stdin).close()
            for _ in self.lines():
                pass
            self.process.wait()
        finally:
            deadline.cancel()
            self.process.kill()
        return self.tail


@contextmanager
def _supervised(link: Link, script: bytes, mark: str) -> Iterator[_Shell]:
    """Start the supervising shell, and let it end in the end."""
    process = link.shell()
    with cast("IO[bytes]", process.stdout):
        tail = Tail(cast("IO[bytes]", process.stderr))
        shell = _Shell(process=process, tail=tail, mark=mark)
        try:
            shell.send(script)
            yield shell
        finally:
            shell.release()


def _prepared(shell: _Shell, remote: Remote, needed_bytes: int) -> str:
    """Return the private folder there once Python, icecam and enough space were found."""
    for word, rest in shell.lines():
        if word == "unfit":
            raise _unfit(remote, int(rest), shell.release())
        if word == "ready":
            folder, _, space = rest.partition(" ")
            _check_folder(remote, folder, space, needed_bytes)
            return folder
        show(rest)
    raise EngineError(
        f"{remote.destination} gave no folder to work in{shell.release().because()}",
        expected="a shell, mktemp and a folder for temporary files",
        then="Nothing was copied.",
    )


def _check_folder(remote: Remote, folder: str, space: str, needed_bytes: int) -> None:
    """Refuse a folder that scp could misread, or that is too small by what df says of it."""
    parent = folder.rpartition("/")[0]
    if not _PLAIN_FOLDER.fullmatch(folder):
        raise EngineError(
            f"temporary files on {remote.destination} go to {parent!r}",
            expected="a path of letters, digits and . _ + - alone",
            then="Nothing was copied. Set TMPDIR there.",
        )
    found = _FREE.search(space)
    if found is not None and int(found["kib"]) * 1024 < needed_bytes:
        raise EngineError(
            f"{parent} on {remote.destination} has {int(found['kib']) * 1024 / 1e6:.1f} MB free",
            expected=f"{needed_bytes / 1e6:.1f} MB for what is copied",
            then="Nothing was copied. Make room there, or set TMPDIR there.",
        )


def _followed(shell: _Shell, remote: Remote, heed: Callable[[dict[str, Any]], None]) -> int:
    """Pass events on until the build ends; return its exit status."""
    status, explained = None, False
    for word, rest in shell.lines():
        if word == "ended":
            status = int(rest)
        elif (event := _event(rest)) is None:
            show(rest)
        else:
            explained = explained or event["event"] in _EXPLAINING
            heed(event)
    if status is None:
        raise EngineError(
            f"the connection to {remote.destination} was lost{shell.release().because()}",
            then="The build there is stopped and the copy removed as soon as that machine "
            "notices. Start again.",
        )
    if status and not explained:
        raise _unexplained(remote, status, shell.release())
    return status


def _event(line: str) -> dict[str, Any] | None:
    """Return what a line holds if it is a JSON object with a string "event"."""
    try:
        event = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return event if isinstance(event, dict) and isinstance(event.get("event"), str) else None


def _unfit(remote: Remote, status: int, tail: Tail) -> IcecamError:
    """Name why ``python -m export.trt --help`` does not run there."""
    if status in {_NOT_EXECUTABLE, _NOT_FOUND}:
        return ConfigError(
            f"{remote.python!r} cannot be run on {remote.destination}",
            expected="the Python of the environment that holds icecam there",
            then="Nothing was copied.",
        )
    if "No module named" in tail.because():
        return EngineError(
            f"icecam is not installed for {remote.python!r} on {remote.destination}"
            f"{tail.because()}",
            then="Nothing was copied. Install it there: python3 -m venv --system-site-packages "
            "VENV && VENV/bin/pip install 'icecam[jetson]'; then name VENV/bin/python.",
        )
    return EngineError(
        f"python -m export.trt ends with exit status {status} on {remote.destination}"
        f"{tail.because()}",
        expected="its --help to be shown",
        then="Nothing was copied.",
    )


def _unexplained(remote: Remote, status: int, tail: Tail) -> EngineError:
    """Name an end that no event has explained."""
    how = f"ended with exit status {status}"
    if status > _SIGNALLED:
        how = f"was ended by signal {status - _SIGNALLED}"
    if status == _SIGNALLED + _SIGKILL:
        how += ", as happens where memory runs out"
    return EngineError(
        f"the build on {remote.destination} {how}, without an event that says why{tail.because()}",
        then="The copy was removed there.",
    )

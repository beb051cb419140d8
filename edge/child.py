"""A part of the station in a process of its own: spawned, answering by a deadline, killable.

The child dies with its parent, whatever kills the parent. Requests and replies are pickled over a
socket pair that only these two processes hold.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from edge.contract.errors import IcecamError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from types import TracebackType

    from typing_extensions import Self

Reply = tuple[Literal["answer", "note", "refusal", "crash", "memory"], Any]
Tell = Callable[[object], bool]
"""Sends a note while an answer is awaited; False once the parent wants no answer any more."""

_PR_SET_PDEATHSIG = 1
_REAP_S = 5.0
_END_S = 10.0  # what a process takes that the kernel ends, with swap to free or a GPU's memory


class Child:
    """The parent's end. A context manager; one thread at a time.

    Raises ``error`` where the child dies, hangs past a deadline or crashes: by then it was killed,
    and ``alive`` is False. An IcecamError that the child raised itself is raised here unchanged.

    killed: whether it ran out of memory, or somebody else's SIGKILL ended it: most likely the
    kernel's, for want of memory.
    """

    def __init__(
        self, module: str, setup: object, *, error: type[IcecamError], start_deadline_s: float
    ) -> None:
        """Spawn ``python -m module``, hand it ``setup`` and wait until it is ready."""
        self._error = error
        self._name = module
        self.killed = False
        self._cut_off = False
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                    [sys.executable, "-m", module, str(theirs.fileno()), str(os.getpid())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                    start_new_session=True,
                )
        except OSError as problem:
            ours.close()
            raise error(f"{module} could not be started ({problem.strerror})") from None
        self._socket = ours
        self._link = Connection(os.dup(ours.fileno()))
        try:
            self.ask(setup, deadline_s=start_deadline_s)
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def ask(
        self,
        request: object,
        *,
        deadline_s: float,
        heed: Callable[[Any], None] = lambda _: None,
    ) -> Any:  # noqa: ANN401 - the child's own
        """Send a request and return the reply, or kill the child at the deadline.

        ``heed`` is given each note that the child sends before its reply; what it raises is raised
        here, and leaves the child at its work.
        """
        with contextlib.closing(self._replies(request, deadline_s)) as replies:
            kind, value = next(replies)
            while kind == "note":
                heed(value)
                kind, value = next(replies)
        if kind == "crash":
            self.close()
            raise self._error(f"{self._name} crashed:\n{value}")
        if kind == "memory":
            self.close()
            self.killed = True
            raise self._error(f"{self._name} ran out of memory")
        if kind == "refusal":
            raise value
        return value

    def stop(self, *, grace_s: float) -> None:
        """Have the child break off what it is asked, as soon as it can; kill it after the grace."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_s)
        self.close()

    def cut(self) -> None:
        """Kill the child from another thread than the one that asks: that one gets the error."""
        self._cut_off = True
        self._cut(threading.Event())

    def close(self) -> None:
        """Kill the child and reap it. Safe to call twice."""
        self._process.kill()
        self._link.close()
        self._socket.close()
        try:
            self._process.wait(_REAP_S)
        except subprocess.TimeoutExpired:  # in the kernel's hands; reaped when it lets go
            return

    def __enter__(self) -> Self:
        """Return the child itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Kill the child."""
        self.close()

    def _replies(self, request: object, deadline_s: float) -> Generator[Reply, None, None]:
        """Yield what the child sends. Raises ``error`` at its end, which the deadline may bring."""
        late = threading.Event()
        timer = threading.Timer(deadline_s, self._cut, [late])
        timer.start()
        try:
            self._link.send(request)
            while True:
                yield self._link.recv()
        except (EOFError, OSError):
            timer.cancel()
            status = self._see_end(late)
            raise self._error(self._death(late, deadline_s, status)) from None
        finally:
            timer.cancel()

    def _cut(self, late: threading.Event) -> None:
        """End a request from the timer's thread, even where the child cannot be killed at once."""
        late.set()
        self._process.kill()
        with contextlib.suppress(OSError):  # closed meanwhile
            self._socket.shutdown(socket.SHUT_RDWR)

    def _see_end(self, late: threading.Event) -> int | None:
        """Return the status of the child's own end, before ``close`` would make it one of ours."""
        if self._link.closed:  # it was seen before
            return self._process.poll()
        if not (late.is_set() or self._cut_off):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_S)
        ours = late.is_set() or self._cut_off
        status = self._process.poll()
        self.killed = status == -signal.SIGKILL and not ours
        self.close()
        return status

    def _death(self, late: threading.Event, deadline_s: float, status: int | None) -> str:
        if late.is_set():
            return f"{self._name} gave no answer within {deadline_s:.1f} s and was killed"
        if self._cut_off:
            return f"{self._name} was broken off"
        if status is None:
            return f"{self._name} hung up without an answer and was killed"
        if status < 0:
            return f"{self._name} was ended by {signal.Signals(-status).name}"
        return f"{self._name} ended with status {status}"


def serve(
    start: Callable[[Any, Tell], AbstractContextManager[Callable[[Any], object]]],
    *,
    oom_score: int = 500,
    niceness: int = 0,
) -> None:
    """Run the child's end until the parent hangs up.

    ``start(setup, tell)`` is a context manager that gives the function which answers each request;
    ``tell`` may be called from any thread while it does.

    oom_score: the least oom_score_adj, as in proc(5): where memory runs out, the kernel is to end
    the child and not its parent. niceness: how far it stands back for others, as in nice(2).
    """
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    _die_with(parent)
    _stand_back(oom_score, niceness)
    with Connection(descriptor) as link:
        try:
            with start(link.recv(), _teller(link)) as answer:
                link.send(("answer", None))
                while True:
                    link.send(_reply(answer, link.recv()))
        except (EOFError, ConnectionError):
            return
        except IcecamError as error:
            link.send(("refusal", error))
        except MemoryError:
            link.send(("memory", None))
        except Exception:  # noqa: BLE001 - the parent reports it; a child has no other voice
            link.send(("crash", traceback.format_exc(limit=-3)))


def _teller(link: Connection) -> Tell:
    one_at_a_time = threading.Lock()

    def tell(note: object) -> bool:
        with one_at_a_time:
            try:
                link.send(("note", note))
                return not link.poll()
            except OSError:  # the parent is gone
                return False

    return tell


def _reply(answer: Callable[[Any], object], request: object) -> Reply:
    try:
        return "answer", answer(request)
    except IcecamError as error:
        return "refusal", error


def _die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent's spawning thread ends (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _stand_back(oom_score: int, niceness: int) -> None:
    """Let others have memory and processor first, as far as this system allows it."""
    score = Path("/proc/self/oom_score_adj")
    with contextlib.suppress(OSError):
        if int(score.read_text(encoding="ascii")) < oom_score:
            score.write_text(f"{oom_score}", encoding="ascii")
    if niceness:
        with contextlib.suppress(OSError):
            os.nice(niceness)

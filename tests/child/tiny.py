"""A tiny child that does what it is told, and what can be seen of processes."""

from __future__ import annotations

import contextlib
import os
import threading
from pathlib import Path

from edge.child import Child
from edge.contract.errors import EngineError

TINY = '''
"""A child that does what it is told, for better or worse."""
import os, sys, threading, time
from contextlib import contextmanager
from datetime import datetime, timezone
from edge.child import serve
from edge.contract.errors import BundleError, CameraError

class Unsendable:
    def __reduce__(self):
        raise TypeError("this cannot be sent")

def answer(request):
    order, *rest = request
    if order == "echo":
        return rest[0]
    if order == "hang":
        time.sleep(600)
    if order == "fail":
        return {}["a key that is not there"]
    if order == "refuse":
        raise CameraError("the lens is iced over", fault="blocked", cursor="a 1.jpg",
                          captured_at=datetime(2026, 1, 2, tzinfo=timezone.utc),
                          expected="glass", then="Wait for spring.")
    if order == "signal":
        os.kill(os.getpid(), rest[0])
        time.sleep(600)
    if order == "exit":
        os._exit(rest[0])
    if order == "hang up, then":
        os.close(int(sys.argv[1]))
        time.sleep(rest[0])
        os.kill(os.getpid(), rest[1])
    if order == "take all memory":
        return bytes(1 << 62)
    if order == "unsendable":
        return Unsendable()
    if order == "print":
        print("a stray print", flush=True)
        return None

def tell_many(tell, name, count, size):
    return [tell([name, number, bytes(size)]) for number in range(count)]

def talk(tell, request):
    order, *rest = request
    if order == "tell":
        return tell_many(tell, "main", *rest)
    if order == "tell from threads":
        threads = [
            threading.Thread(target=tell_many, args=[tell, name, *rest]) for name in "abcd"
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if order == "tell until unwanted":
        while tell("wanted?"):
            time.sleep(0.01)
        open(rest[0], "w").write("broken off")
    if order == "tell and hang":
        tell("hanging")
        time.sleep(600)

@contextmanager
def start(setup, tell):
    if setup == "refuse":
        raise BundleError("no bundle", expected="one")
    answer([setup] if isinstance(setup, str) else setup or ["nothing"])
    yield lambda request: talk(tell, request) if request[0][:4] == "tell" else answer(request)

if __name__ == "__main__":
    serve(start)
'''

DEAF = "import time\ntime.sleep(600)\n"


def tiny(setup: object = None, *, start_deadline_s: float = 30.0) -> Child:
    return Child("tiny_child", setup, error=EngineError, start_deadline_s=start_deadline_s)


def state(pid: int) -> str:
    """R, S, D, Z … as in proc(5), or nothing where there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return ""


def zombies() -> int:
    """How many children of this process ended and were not waited for."""
    count = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found, parent = stat.read_text(encoding="utf-8").rpartition(")")[2].split()[:2]
            count += found == "Z" and int(parent) == os.getpid()
    return count


def descriptors() -> list[str]:
    """What this process holds open, by number and target."""
    found = []
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the one that lists them
            found.append(f"{descriptor.name} {descriptor.readlink()}")
    return sorted(found)


def threads() -> int:
    """How many threads this process has; timers that were cancelled are given time to end."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(5)
    return threading.active_count()


class Unwanted(Exception):  # noqa: N818 - what stands in for Ctrl-C
    """The one who asked wants no answer any more."""


def refuse(_: object) -> None:
    raise Unwanted

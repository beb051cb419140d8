"""Files that are there whole or not at all, whatever fails while they are written."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge.contract.files import sync_folder, write_atomically

OLD, NEW = b"old" * 1000, b"new!" * 1000


@pytest.fixture
def old(tmp_path: Path) -> Path:
    path = tmp_path / "state.json"
    path.write_bytes(OLD)
    return path


def test_the_file_holds_what_was_written_and_nothing_else_is_left(old: Path) -> None:
    write_atomically(old, NEW)
    assert old.read_bytes() == NEW
    assert [path.name for path in old.parent.iterdir()] == ["state.json"]


def test_a_file_that_was_not_there_appears(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.bin", b"")
    assert (tmp_path / "a.bin").read_bytes() == b""


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_leftovers(
    old: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(old, NEW)
    assert old.read_bytes() == OLD
    assert [path.name for path in old.parent.iterdir()] == ["state.json"]


def test_a_disk_that_is_really_full_leaves_the_old_file_and_no_leftovers(old: Path) -> None:
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "from edge.contract.files import write_atomically\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try: write_atomically(Path(sys.argv[1]), b'new!' * 1000)\n"
        "except OSError as error: sys.exit(7 if error.errno == 27 else 8)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(old)], check=False, timeout=60)
    assert ended.returncode == 7  # EFBIG, where the write was cut by the kernel
    assert old.read_bytes() == OLD
    assert [path.name for path in old.parent.iterdir()] == ["state.json"]


def test_a_missing_folder_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "none" / "a", b"x")
    with pytest.raises(FileNotFoundError):
        sync_folder(tmp_path / "none")


def test_the_data_is_on_disk_before_it_takes_the_name_and_the_name_after(
    old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def noted_fsync(descriptor: int) -> None:
        synced = Path(f"/proc/self/fd/{descriptor}").readlink()
        steps.append(f"sync {synced.suffix or 'folder'}")
        fsync(descriptor)

    def noted_replace(self: Path, target: Path) -> Path:
        steps.append("rename")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    write_atomically(old, NEW)
    assert steps == ["sync .part", "rename", "sync folder"]


WRITER = """
import sys
from pathlib import Path
from edge.contract.files import write_atomically
path, size = Path(sys.argv[1]), int(sys.argv[2])
print("ready", flush=True)
while True:
    for letter in b"abc":
        write_atomically(path, bytes([letter]) * size)
"""


def test_a_process_killed_while_writing_leaves_the_old_or_the_new_file(tmp_path: Path) -> None:
    path, size = tmp_path / "state.bin", 2_000_000
    write_atomically(path, b"a" * size)
    for round_number in range(6):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(size)], stdout=subprocess.PIPE
        )
        with writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(0.01 + 0.007 * round_number)
            writer.send_signal(signal.SIGKILL)
        found = path.read_bytes()
        assert len(found) == size
        assert len(set(found)) == 1

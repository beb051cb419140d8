"""A machine to build on: a real sshd on loopback, for one test."""

from __future__ import annotations

import os
import random
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

from tests.export.remote.sshd import (
    ENDED,
    LOOPBACK,
    Station,
    is_listening,
    keygen,
    need,
    until_true,
)


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


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A file of 3 MB that is like no other; what is in it is not looked at."""
    path = tmp_path / "ice.icecam"
    path.write_bytes(random.Random(4).randbytes(3_000_000))
    return path


@pytest.fixture
def temporary_here() -> Iterator[Path]:
    """A folder for temporary files on this side, as short as a socket needs it."""
    with tempfile.TemporaryDirectory(prefix="icecam-test-") as folder:
        yield Path(folder)

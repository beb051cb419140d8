"""keygen: two new files, the private one for its owner alone, nothing replaced."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from edge.contract.errors import ConfigError
from edge.signing import is_encrypted, public_key, read_private_key, read_public_key
from export.commands.keygen import keygen

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[3]
CANARY = "wal-rus on thin ice"


def export(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "export", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_pair_belongs_together_and_the_key_id_and_what_to_configure_are_printed(
    tmp_path: Path,
) -> None:
    done = export("keygen", "-o", tmp_path / "keys" / "harbour")
    assert done.returncode == 0, done.stderr
    private, public = (tmp_path / "keys" / f"harbour.{ending}" for ending in ("key", "pub"))
    key = read_public_key(public)
    assert public_key(read_private_key(private, None)) == key
    assert f"key id {key.id}" in done.stdout
    assert done.stdout.endswith('[bundle]\ntrusted_keys = ["harbour.pub"]\n')
    secret = private.read_text().splitlines()[1]
    assert secret not in done.stdout + done.stderr


@pytest.mark.usefixtures("open_umask")
def test_the_private_key_is_its_owner_s_alone_from_the_moment_it_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    really = os.fsync

    def look(descriptor: int) -> None:
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        seen[name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        really(descriptor)

    monkeypatch.setattr(os, "fsync", look)
    for changes in ("chmod", "fchmod"):
        monkeypatch.delattr(os, changes)
    keygen(tmp_path / "k", None)
    assert (seen["k.key"], seen["k.pub"]) == (0o600, 0o644)
    assert stat.S_IMODE((tmp_path / "k.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("taken", ["k.key", "k.pub"])
def test_a_file_that_is_there_is_never_replaced(tmp_path: Path, taken: str) -> None:
    (tmp_path / taken).write_bytes(b"precious")
    done = export("keygen", "-o", tmp_path / "k")
    assert done.returncode == 2
    assert f"{taken} is there already" in done.stderr
    assert content(tmp_path) == {taken: b"precious"}


def test_a_link_that_leads_nowhere_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "k.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="is there already"):
        keygen(tmp_path / "k", None)
    assert [path.name for path in tmp_path.iterdir()] == ["k.key"]


@pytest.mark.parametrize("taken", ["k.key", "k.pub"])
def test_a_file_that_appears_at_the_last_moment_is_kept_and_half_a_pair_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    monkeypatch.setattr(os.path, "lexists", lambda _: False)
    (tmp_path / taken).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="is there already"):
        keygen(tmp_path / "k", None)
    assert content(tmp_path) == {taken: b"precious"}


def test_a_disk_that_takes_no_more_leaves_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"k\.key: cannot be written \(No space left"):
        keygen(tmp_path / "k", None)
    assert content(tmp_path) == {}


def test_a_passphrase_from_a_file_protects_the_key_as_openssl_understands_it(
    tmp_path: Path,
) -> None:
    secret = tmp_path / "secret"
    secret.write_text(f"{CANARY}\n")
    done = export("keygen", "-o", tmp_path / "k", "--passphrase-file", secret)
    assert done.returncode == 0, done.stderr
    assert CANARY not in done.stdout + done.stderr
    assert is_encrypted(tmp_path / "k.key")

    def opened(passphrase: str) -> subprocess.CompletedProcess[bytes]:
        command = ["openssl", "pkey", "-in", tmp_path / "k.key", "-pubout", "-passin", "stdin"]
        return subprocess.run(command, input=passphrase.encode(), capture_output=True, check=False)

    assert opened(CANARY).stdout == (tmp_path / "k.pub").read_bytes()
    assert opened("walrus").returncode != 0


@pytest.mark.parametrize("content", [b"", b"\n", b"x" * 1024])
def test_a_passphrase_that_is_none_or_too_long_makes_no_key(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "secret").write_bytes(content)
    done = export("keygen", "-o", tmp_path / "k", "--passphrase-file", tmp_path / "secret")
    assert done.returncode == 2
    assert "expected 1 to 1023" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--passphrase"], "--passphrase without a terminal"),
        (["--passphrase", "--passphrase-file", "x"], "expected one of them"),
        (["--passphrase-file", "absent"], "absent: cannot be read"),
    ],
)
def test_a_passphrase_that_cannot_be_had_makes_no_key(
    tmp_path: Path, arguments: list[str], said: str
) -> None:
    done = export("keygen", "-o", tmp_path / "k", *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert content(tmp_path) == {}


@pytest.mark.parametrize("name", ["/", "..", "."])
def test_a_name_that_names_no_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="is no name"):
        keygen(Path(name), None)

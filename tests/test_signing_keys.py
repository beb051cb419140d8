"""Keys in files: read whole or refused by name, and never shown."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from functools import partial
from typing import TYPE_CHECKING

import pytest

from edge.config import read_config
from edge.contract.errors import ConfigError
from edge.signing import (
    Trust,
    new_private_key,
    private_pem,
    public_key,
    read_private_key,
    read_public_key,
    read_trust,
)

if TYPE_CHECKING:
    from pathlib import Path

    from edge.config import StationConfig

CANARY = b"wal-rus on thin ice"
OLD, NEW = new_private_key(), new_private_key()
OLD_ID = public_key(OLD).id


def openssl(*arguments: object) -> None:
    if shutil.which("openssl") is None:
        pytest.fail("the openssl command is missing: apt install openssl")
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True, timeout=60)


def pem_of(kind: str, folder: Path) -> tuple[Path, Path]:
    """Private and public key of a kind, made by openssl."""
    private, public = folder / f"{kind}.key", folder / f"{kind}.pub"
    options = ("-pkeyopt", "ec_paramgen_curve:P-256") if kind == "EC" else ()
    openssl("genpkey", "-algorithm", kind, *options, "-out", private)
    openssl("pkey", "-in", private, "-pubout", "-out", public)
    return private, public


@pytest.mark.parametrize("kind", ["RSA", "EC", "X25519", "Ed448"])
def test_a_key_of_another_kind_is_refused_by_name(tmp_path: Path, kind: str) -> None:
    private, public = pem_of(kind, tmp_path)
    with pytest.raises(ConfigError, match=rf"{kind}\.pub: holds a key of kind {kind}"):
        read_public_key(public)
    with pytest.raises(ConfigError, match=f"{kind}.key: holds a key of kind {kind}"):
        read_private_key(private, None)


def test_a_private_key_in_place_of_a_public_one_is_named_and_not_shown(tmp_path: Path) -> None:
    path = tmp_path / "k.key"
    for passphrase in (None, CANARY):
        path.write_bytes(private_pem(OLD, passphrase))
        with pytest.raises(ConfigError, match="is a private key") as caught:
            read_public_key(path)
        assert "keep it off stations" in str(caught.value)
        assert path.read_text().splitlines()[1][:20] not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "holds no"),
        (b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAI a@b", "holds no"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "holds no"),
        (b"\xff" * 100, "holds no"),
        (bytes(20_000), "more than 16384 bytes"),
    ],
    ids=["empty", "ssh", "short", "bytes", "large"],
)
def test_a_file_that_holds_no_key_is_refused(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "k"
    path.write_bytes(content)
    for read in (read_public_key, partial(read_private_key, passphrase=None)):
        with pytest.raises(ConfigError, match=said):
            read(path)
        with pytest.raises(ConfigError, match=r"absent: cannot be read \(No such file"):
            read(tmp_path / "absent")


def test_a_passphrase_opens_its_key_alone_and_is_never_shown(tmp_path: Path) -> None:
    path = tmp_path / "k.key"
    path.write_bytes(private_pem(OLD, CANARY))
    assert public_key(read_private_key(path, CANARY)).id == OLD_ID
    for wrong in (CANARY + b"\n", CANARY.upper(), None, b""):
        with pytest.raises(ConfigError, match="passphrase") as caught:
            read_private_key(path, wrong)
        assert CANARY.decode().lower() not in repr(caught.value).lower()
        assert caught.value.__cause__ is None
    path.write_bytes(private_pem(OLD, None))
    with pytest.raises(ConfigError, match="is not protected by a passphrase"):
        read_private_key(path, CANARY)


# station.toml


STATION = """
station.id = "salluit"
bundle.path = "b.icecam"
{}
[[cameras]]
type = "folder"
id = "a"
path = "p"
schedule.every = "1h"
"""


def config_of(folder: Path, *lines: str) -> StationConfig:
    (folder / "station.toml").write_text(STATION.format("\n".join(lines)), encoding="utf-8")
    return read_config(folder / "station.toml")


def test_a_station_toml_says_whom_to_trust_by_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "old.pub").write_bytes(public_key(OLD).pem)
    (tmp_path / "new.pub").write_bytes(public_key(NEW).pem)
    digest = hashlib.sha256(b"a manifest").hexdigest()
    config = config_of(
        tmp_path,
        f'bundle.trusted_keys = ["old.pub", "{tmp_path}/new.pub"]',
        f'bundle.revoked = ["{OLD_ID.upper()}", "{digest}"]',
    )
    assert read_trust(config.bundle) == Trust(
        keys=(public_key(OLD), public_key(NEW)), revoked=frozenset({OLD_ID, digest})
    )
    assert read_trust(config_of(tmp_path).bundle) == Trust()


def test_a_trusted_key_that_is_not_there_is_a_config_error(tmp_path: Path) -> None:
    config = config_of(tmp_path, 'bundle.trusted_keys = ["gone.pub"]')
    with pytest.raises(ConfigError, match=r"gone\.pub: cannot be read"):
        read_trust(config.bundle)


@pytest.mark.parametrize("revoked", ['"all"', '"0123456789abcde"', '"0123456789abcdeg"', "7", '""'])
def test_what_is_revoked_is_a_key_id_or_a_manifest_s_hash(tmp_path: Path, revoked: str) -> None:
    with pytest.raises(ConfigError, match=r"bundle\.revoked\[0\]: expected a key id \(16 hex"):
        config_of(tmp_path, f"bundle.revoked = [{revoked}]")

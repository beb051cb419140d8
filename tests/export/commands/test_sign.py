"""sign: what openssl confirms, and a bundle that is old or new whatever happens meanwhile."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from functools import partial
from pathlib import Path

import pytest

from edge.contract.bundle import open_bundle, sign_bundle
from edge.signing import (
    Trust,
    describe_signature,
    open_trusted,
    public_key,
    read_private_key,
    read_public_key,
    sign_manifest,
)

REPOSITORY = Path(__file__).resolve().parents[3]
CANARY = "wal-rus on thin ice"
AT_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=REPOSITORY,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


export = partial(run, sys.executable, "-m", "export")
icecam = partial(run, sys.executable, "-m", "edge")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pairs that the real command made: old, new, and locked by a passphrase."""
    folder = tmp_path_factory.mktemp("keys")
    (folder / "secret").write_text(CANARY)
    for name, *more in (("old",), ("new",), ("locked", "--passphrase-file", folder / "secret")):
        done = export("keygen", "-o", folder / name, *more)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def bundle(tmp_path: Path, demo_bundle: Path) -> Path:
    (tmp_path / "b").mkdir()
    return shutil.copy(demo_bundle, tmp_path / "b" / "ice.icecam")


def key_id(path: Path) -> str:
    return read_public_key(path).id


def entries(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r:") as tar:
        return {entry.name: tar.extractfile(entry).read() for entry in tar}  # type: ignore[union-attr]


def sign_in_place(bundle: Path, key: Path) -> None:
    """Sign in this process, for tests of what comes after."""
    private = read_private_key(key, None)
    sign_bundle(
        open_bundle(bundle), bundle, lambda raw, so_far: sign_manifest(raw, private, beside=so_far)
    )


def test_openssl_confirms_key_id_and_signature(bundle: Path, keys: Path, tmp_path: Path) -> None:
    before = entries(bundle)
    done = export("sign", bundle, "--key", keys / "old.key")
    assert done.returncode == 0, done.stderr
    found = entries(bundle)
    assert list(found)[:2] == ["manifest.json", "manifest.sig"]
    kind, named, code = found.pop("manifest.sig").decode().split()
    assert found == before
    der = tmp_path / "pub.der"
    run("openssl", "pkey", "-pubin", "-in", keys / "old.pub", "-outform", "DER", "-out", der)
    assert kind == "ed25519"
    assert named == hashlib.sha256(der.read_bytes()[-32:]).hexdigest()[:16]
    assert named in done.stdout
    assert hashlib.sha256(found["manifest.json"]).hexdigest() in done.stdout

    def confirmed(manifest: bytes) -> bool:
        (tmp_path / "m").write_bytes(manifest)
        (tmp_path / "s").write_bytes(base64.b64decode(code))
        given = ("-pubin", "-inkey", keys / "old.pub", "-sigfile", tmp_path / "s")
        verify = ("openssl", "pkeyutl", "-verify", "-rawin", *given, "-in", tmp_path / "m")
        return run(*verify).returncode == 0

    assert confirmed(found["manifest.json"])
    assert not confirmed(found["manifest.json"] + b" ")


def test_another_key_adds_a_line_and_the_same_key_changes_nothing(bundle: Path, keys: Path) -> None:
    out = bundle.with_name("out.icecam")
    for key, more in (("old", ("-o", out)), ("new", ())):
        done = export("sign", out if key == "new" else bundle, "--key", keys / f"{key}.key", *more)
        assert done.returncode == 0, done.stderr
    old, new = key_id(keys / "old.pub"), key_id(keys / "new.pub")
    assert f"keeps what was signed in the name of {old}" in done.stdout
    assert "manifest.sig" not in entries(bundle)
    lines = entries(out)["manifest.sig"].decode().splitlines()
    assert [line.split()[1] for line in lines] == [old, new]
    twice = out.read_bytes()
    assert export("sign", out, "--key", keys / "old.key").returncode == 0
    assert out.read_bytes() == twice


DYING = """
import os, resource, runpy, signal, sys
from pathlib import Path

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

fsync, synced = os.fsync, []

def fsync_or_die(descriptor):
    synced.append(descriptor)
    if len(synced) == 2:
        die()
    fsync(descriptor)

moment = sys.argv.pop(1)
if moment == "half written":
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
elif moment == "written":
    os.fsync = die
elif moment == "not yet renamed":
    Path.replace = die
else:
    os.fsync = fsync_or_die
runpy.run_module("export", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize("moment", ["half written", "written", "not yet renamed", "renamed"])
def test_a_signing_that_is_killed_leaves_the_old_bundle_or_the_new_one(
    bundle: Path, keys: Path, moment: str
) -> None:
    before = bundle.read_bytes()
    done = run(sys.executable, "-c", DYING, moment, "sign", bundle, "--key", keys / "old.key")
    assert done.returncode < 0, done.stdout
    trust = Trust(keys=(read_public_key(keys / "old.pub"),))
    if moment == "renamed":
        assert open_trusted(bundle, trust).signed_by == key_id(keys / "old.pub")
    else:
        assert bundle.read_bytes() == before
    sign_in_place(bundle, keys / "old.key")
    assert open_trusted(bundle, trust).signed_by is not None


def test_a_disk_that_takes_no_more_leaves_the_bundle_as_it_was(bundle: Path, keys: Path) -> None:
    before = bundle.read_bytes()
    limited = 'ulimit -f 2000; exec "$0" -m export sign "$1" --key "$2"'
    done = run("sh", "-c", limited, sys.executable, bundle, keys / "old.key")
    assert done.returncode == 2
    assert "cannot be written (File too large). What was there is as it was." in done.stderr
    assert bundle.read_bytes() == before
    assert [path.name for path in bundle.parent.iterdir()] == [bundle.name]


def test_a_damaged_bundle_is_not_signed(bundle: Path, keys: Path) -> None:
    whole = bundle.read_bytes()
    damaged = whole[:3_000_000] + bytes([whole[3_000_000] ^ 1]) + whole[3_000_001:]
    bundle.write_bytes(damaged)
    done = export("sign", bundle, "--key", keys / "old.key")
    assert done.returncode == 1
    assert "is damaged" in done.stderr
    assert bundle.read_bytes() == damaged


def test_a_key_with_a_passphrase_signs_with_it_alone_and_nothing_shows_it(
    bundle: Path, keys: Path, tmp_path: Path
) -> None:
    before = bundle.read_bytes()
    wrong = tmp_path / "wrong"
    wrong.write_text(CANARY.replace("rus", "-rus"))
    refused = [
        export("sign", bundle, "--key", keys / "locked.key"),
        export("sign", bundle, "--key", keys / "locked.key", "--passphrase-file", wrong),
        export("sign", bundle, "--key", keys / "locked.key", "--passphrase-file", wrong, "--debug"),
        export("sign", bundle, "--key", keys / "old.key", "--passphrase-file", keys / "secret"),
        export("sign", bundle, "--key", keys / "locked.pub"),
        export("sign", bundle, "--key", keys / "absent.key"),
    ]
    assert [done.returncode for done in refused] == [2, 2, 1, 2, 2, 2]
    said = ["is protected by", "passphrase is wrong", "passphrase is wrong", "is not protected"]
    said += ["holds no private key", "cannot be read"]
    assert all(words in done.stderr for words, done in zip(said, refused, strict=True))
    assert bundle.read_bytes() == before
    done = export(
        "sign", bundle, "--key", keys / "locked.key", "--passphrase-file", keys / "secret"
    )
    assert done.returncode == 0, done.stderr
    told = "".join(one.stdout + one.stderr for one in (*refused, done))
    assert "thin ice" not in told
    trust = Trust(keys=(read_public_key(keys / "locked.pub"),))
    assert open_trusted(bundle, trust).signed_by == key_id(keys / "locked.pub")


def answered(*command: object, answers: dict[str, str]) -> str:
    """Run at a terminal of its own; type each answer once its question is shown."""
    process = subprocess.Popen(
        [sys.executable, "-c", AT_A_TERMINAL, *map(str, command)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        bufsize=0,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    shown = b""
    with process:
        try:
            for question, answer in answers.items():
                while question.encode() not in shown:
                    read = os.read(process.stdout.fileno(), 4096)
                    assert read, shown.decode()
                    shown += read
                process.stdin.write(f"{answer}\n".encode())
            shown += process.stdout.read()
            process.wait(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 0, shown.decode()
    return shown.decode()


@pytest.mark.timeout(60)
def test_a_terminal_asks_for_passphrases_and_does_not_show_them(
    bundle: Path, tmp_path: Path
) -> None:
    name = tmp_path / "asked"
    command = (sys.executable, "-m", "export")
    answers = {"Passphrase: ": CANARY, "Repeat for confirmation: ": CANARY}
    shown = answered(*command, "keygen", "-o", name, "--passphrase", answers=answers)
    assert public_key(read_private_key(Path(f"{name}.key"), CANARY.encode())).id in shown
    question = {f"Passphrase of {name}.key: ": CANARY}
    shown += answered(*command, "sign", bundle, "--key", f"{name}.key", answers=question)
    assert describe_signature(open_bundle(bundle)).startswith("signed in the name of key ")
    assert CANARY not in shown


def a_station(folder: Path, bundle: Path, *lines: str) -> Path:
    (folder / "pictures").mkdir(exist_ok=True)
    path = folder / "station.toml"
    path.write_text(
        "\n".join(
            [
                'station = { id = "here", state_dir = "state" }',
                'broker.url = "mqtt://127.0.0.1:1"',
                f'bundle.path = "{bundle}"',
                *lines,
                "[[cameras]]",
                'id = "cam"',
                'type = "folder"',
                'path = "pictures"',
                'schedule.every = "1h"',
            ]
        )
    )
    return path


def test_check_and_run_believe_whom_they_are_told_to(
    bundle: Path, keys: Path, tmp_path: Path
) -> None:
    sign_in_place(bundle, keys / "old.key")
    old = key_id(keys / "old.pub")
    done = icecam("check", "--bundle", bundle)
    assert done.returncode == 0, done.stdout
    assert f"signed in the name of key {old}, not trusted here" in done.stdout
    told = ("--trust", keys / "new.pub", "--trust", keys / "old.pub")
    done = icecam("check", "--bundle", bundle, *told)
    assert done.returncode == 0, done.stdout
    assert f"signed by key {old}" in done.stdout
    done = icecam("check", "--bundle", bundle, "--trust", keys / "new.pub")
    assert done.returncode == 1
    assert f"signed only by unknown key {old}" in done.stdout
    done = icecam("check", "--config", "x.toml", "--trust", keys / "new.pub")
    assert (done.returncode, "bundle.trusted_keys" in done.stderr) == (2, True)
    trusted = f'bundle.trusted_keys = ["{keys}/old.pub"]'
    done = icecam("check", "--config", a_station(tmp_path, bundle, trusted))
    assert f"signed by key {old}" in done.stdout
    station = a_station(tmp_path, bundle, trusted, f'bundle.revoked = ["{old}"]')
    done = icecam("run", "--config", station)
    assert done.returncode == 1
    assert f"is signed by key {old}, which is revoked" in done.stderr
    assert not (tmp_path / "state").exists()

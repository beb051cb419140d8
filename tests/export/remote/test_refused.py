"""Machines, keys and files that will not do: named before anything is copied."""

from __future__ import annotations

import getpass
import signal
from typing import TYPE_CHECKING

import pytest

from edge.contract.errors import ConfigError, IcecamError
from export.remote import Remote, run_there
from tests.export.remote.sshd import (
    LOOPBACK,
    Station,
    ignore,
    is_listening,
    keygen,
    need,
    until_true,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    "destination",
    [
        "",
        "-oProxyCommand=touch x",
        "-oProxyCommand=x@jetson",
        "user@-oProxyCommand=x",
        "ssh://-oProxyCommand=x",
        "jet son",
        "jetson;id",
        "jetson\n",
        "$(id)@jetson",
        "`id`",
        "user@",
        "@jetson",
        "jetson:2222",
        "ssh://jetson:0",
        "ssh://jetson:65536",
        "ssh://jetson:",
        "ssh://jetson/folder",
        "http://jetson",
        "[::1",
        "[1.2.3.4]",
        "[::1]:22",
        "ssh://[::g]",
        "fe80::1",
        "jetson/folder",
        "jetson\0",
        "ssh://jetson:٢٢",
    ],
)
def test_what_is_no_machine_is_refused_before_anything_is_started(destination: str) -> None:
    with pytest.raises(ConfigError, match="is not a machine to reach by ssh"):
        Remote(destination=destination)


@pytest.mark.parametrize(
    ("destination", "login", "port", "folder"),
    [
        ("jetson", "jetson", None, "jetson:/x/"),
        ("ice@10.0.0.7", "ice@10.0.0.7", None, "ice@10.0.0.7:/x/"),
        ("ice@lab@jetson", "ice@lab@jetson", None, "ice@lab@jetson:/x/"),
        ("ssh://ice@jetson.local:2222", "ice@jetson.local", 2222, "ice@jetson.local:/x/"),
        ("ssh://jetson", "jetson", None, "jetson:/x/"),
        ("ice@[fe80::1%usb0]", "ice@fe80::1%usb0", None, "ice@[fe80::1%usb0]:/x/"),
        ("ssh://[::1]:22", "::1", 22, "[::1]:/x/"),
    ],
)
def test_a_destination_is_taken_apart(
    destination: str, login: str, port: int | None, folder: str
) -> None:
    remote = Remote(destination=destination)
    assert (remote.login, remote.port, remote.folder("/x")) == (login, port, folder)


def test_an_address_with_user_and_port_is_reached_as_well(station: Station, bundle: Path) -> None:
    destination = f"ssh://{getpass.getuser()}@{LOOPBACK}:{station.port}"
    remote = station.configured(destination=destination, more="Host *")
    config = station.folder / "ssh_config"
    config.write_text(
        config.read_text()
        + f"IdentityFile {station.folder}/user\nUserKnownHostsFile {station.folder}/known_hosts\n"
    )
    assert run_there(remote, bundle, [], heed=ignore) == 0


def test_habits_in_the_ssh_configuration_do_not_get_in_the_way(
    station: Station, bundle: Path
) -> None:
    habits = {
        "RequestTTY": "force",
        "RemoteCommand": "tmux attach",
        "ControlMaster": "no",
        "ControlPath": "none",
        "StrictHostKeyChecking": "no",
        "LocalForward": f"{LOOPBACK}:{station.port} {LOOPBACK}:1",
        "ExitOnForwardFailure": "yes",
        "PermitLocalCommand": "yes",
        "LocalCommand": f"touch {station.notes}/local",
    }
    assert run_there(station.configured(**habits), bundle, [], heed=ignore) == 0
    assert not (station.notes / "local").exists()


def refused(station: Station, bundle: Path, **changes: str) -> IcecamError:
    """What a refused connection is told as; nothing was run there."""
    with pytest.raises(IcecamError) as error:
        run_there(station.configured(**changes), bundle, [], heed=ignore)
    assert not (station.notes / "called.json").exists()
    return error.value


def test_an_unknown_host_key_is_refused_even_where_the_configuration_would_take_it(
    station: Station, bundle: Path
) -> None:
    (station.folder / "known_hosts").write_text("")
    error = refused(station, bundle, StrictHostKeyChecking="no")
    assert str(error).startswith("the host key of jetson is unknown")
    assert error.then.endswith("ssh jetson")
    assert (station.folder / "known_hosts").read_text() == ""


def test_a_changed_host_key_is_refused_by_name(station: Station, bundle: Path) -> None:
    other = keygen(station.folder / "other")
    (station.folder / "known_hosts").write_text(f"[{LOOPBACK}]:{station.port} {other}")
    error = refused(station, bundle, StrictHostKeyChecking="no", LogLevel="QUIET")
    assert str(error).startswith("the host key of jetson has CHANGED")


def test_a_key_that_is_not_accepted_is_named_as_a_refused_login(
    station: Station, bundle: Path
) -> None:
    keygen(station.folder / "stranger")
    error = refused(station, bundle, IdentityFile=str(station.folder / "stranger"))
    assert str(error).startswith("jetson refused the login: ")
    assert "Permission denied (publickey)" in error.found


def test_a_machine_that_does_not_answer_is_named_with_what_ssh_says(
    station: Station, bundle: Path
) -> None:
    station.sshd.kill()
    station.sshd.wait()
    error = refused(station, bundle)
    assert str(error).startswith("no connection to jetson: ")
    assert "Connection refused" in error.found


def test_a_name_that_nobody_knows_is_told_with_what_ssh_says(
    station: Station, bundle: Path
) -> None:
    error = refused(station, bundle, HostName="no-such-machine.invalid")
    assert "Could not resolve hostname" in error.found


@pytest.mark.parametrize("program", ["ssh", "scp"])
def test_a_program_that_is_missing_here_is_named(
    station: Station, bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, program: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    other = {"ssh": "scp", "scp": "ssh"}[program]
    (programs / other).symlink_to(need(other, "openssh-client"))
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(ConfigError, match=f"^{program} is not installed.*openssh-client"):
        run_there(station.configured(), bundle, [], heed=ignore)


def test_a_bundle_that_is_not_there_or_no_file_is_named(station: Station, tmp_path: Path) -> None:
    for path in (tmp_path / "missing.icecam", tmp_path):
        with pytest.raises(ConfigError, match="is not a file that can be read"):
            run_there(station.configured(), path, [], heed=ignore)
    assert "Accepted" not in station.log


def test_an_argument_that_no_program_can_take_is_named(station: Station, bundle: Path) -> None:
    with pytest.raises(ConfigError, match="holds a NUL character"):
        run_there(station.configured(), bundle, ["a\0b"], heed=ignore)


def test_a_copy_that_fails_half_way_is_named_and_removed(station: Station, bundle: Path) -> None:
    station.configured()
    config = (station.folder / "sshd_config").read_text()
    (station.folder / "sshd_config").write_text(config.replace("internal-sftp", "/bin/false"))
    station.sshd.send_signal(signal.SIGHUP)  # it reads its configuration anew
    until_true(lambda: "Received SIGHUP" in station.log, "the new configuration")
    until_true(lambda: is_listening(station.port), "sshd")
    error = refused(station, bundle)
    assert str(error).startswith("copying to jetson failed: ")
    station.assert_nothing_is_left()

"""station.toml: read whole, or every mistake by its path and what would be right."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from edge.config import broker_address, duration_s, read_config
from edge.contract.errors import ConfigError

FULL = """
[station]
id = "salluit"
state_dir = "state"

[bundle]
path = "models/ice.icecam"
allow_unsigned = true

[engine]
backend = "trt"
workspace_mib = 512

[broker]
url = "mqtt://broker.example:8884"

[[cameras]]
type = "folder"
id = "harbour-1"
path = "pictures"
take = "every"
deadline_s = 12.5
region = [[[0, 0], [1920, 0], [1920.5, 1080], [0, 1080]]]
[cameras.schedule]
every = "30m"

[[cameras]]
type = "folder"
id = "wharf"
path = "/srv/wharf"
schedule = { every = "1h" }
"""

SMALL = """
station.id = "salluit"
bundle.path = "b.icecam"
[[cameras]]
type = "folder"
id = "a"
path = "p"
schedule.every = "1h"
"""


def station_toml(folder: Path, text: str) -> Path:
    path = folder / "station.toml"
    path.write_text(text, encoding="utf-8")
    return path


def mistakes(folder: Path, text: str) -> str:
    path = station_toml(folder, text)
    with pytest.raises(ConfigError) as caught:
        read_config(path)
    assert caught.value.exit_code == 2
    assert all(line.startswith(f"{path}: ") for line in str(caught.value).splitlines())
    return str(caught.value).replace(f"{path}: ", "")


def test_a_full_station_toml_loads_with_every_value(tmp_path: Path) -> None:
    config = read_config(station_toml(tmp_path, FULL))
    assert config.station.id == "salluit"
    assert config.bundle.allow_unsigned
    assert (config.engine.backend, config.engine.workspace_mib) == ("trt", 512)
    assert config.broker.address == ("broker.example", 8884)
    harbour, wharf = config.cameras
    assert (harbour.id, harbour.type, harbour.take) == ("harbour-1", "folder", "every")
    assert harbour.deadline_s == 12.5
    assert harbour.region == (((0, 0), (1920, 0), (1920.5, 1080), (0, 1080)),)
    assert harbour.schedule.every_s == 1800
    assert (wharf.take, wharf.region, wharf.schedule.every_s) == ("newest", (), 3600)


def test_what_is_left_out_takes_the_safe_default(tmp_path: Path) -> None:
    config = read_config(station_toml(tmp_path, SMALL))
    assert not config.bundle.allow_unsigned
    assert config.broker.address == ("127.0.0.1", 1883)
    assert (config.engine.backend, config.engine.workspace_mib) == ("auto", 1024)
    assert str(config.station.state_dir) == "/var/lib/icecam"


def test_relative_paths_count_from_the_file_s_folder_and_absolute_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "etc", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    station_toml(home, FULL)
    monkeypatch.chdir(elsewhere)
    for named in (home / "station.toml", (elsewhere / ".." / "etc" / "station.toml")):
        config = read_config(named)
        assert config.station.state_dir == home / "state"
        assert config.bundle.path == home / "models" / "ice.icecam"
        assert config.cameras[0].path == home / "pictures"
        assert str(config.cameras[1].path) == "/srv/wharf"


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ('station.id = "salluit"', "", "station: missing"),
        ('station.id = "salluit"', 'station.id = "Salluit"', "station.id: expected "),
        ('station.id = "salluit"', 'station.id = "a/b"', "station.id: expected "),
        (
            'station.id = "salluit"',
            "station.id = 7",
            "station.id: expected a valid string, found 7",
        ),
        (
            'station.id = "salluit"',
            'station.idd = "x"',
            "station.idd: unknown key; did you mean 'id'",
        ),
        ('bundle.path = "b.icecam"', "", "bundle: missing"),
        ('bundle.path = "b.icecam"', "bundle.path = 1", "bundle.path: expected "),
        ('bundle.path = "b.icecam"', 'bundle = "b.icecam"', "bundle: expected "),
        (
            'bundle.path = "b.icecam"',
            'bundle.path = "b"\nbundle.allow_unsigned = "maybe"',
            "bundle.allow_unsigned: expected ",
        ),
        ('type = "folder"', 'type = "rtsp"', "cameras[0].type: expected 'folder', found 'rtsp'"),
        ('id = "a"', 'id = "camera one"', "cameras[0].id: expected "),
        ('path = "p"', "", "cameras[0].path: missing"),
        (
            'every = "1h"',
            'every = "soon"',
            "cameras[0].schedule.every: expected a duration such as",
        ),
        (
            'every = "1h"',
            "every = 30",
            "cameras[0].schedule.every: expected a duration such as 30m",
        ),
        ('every = "1h"', 'every = "0m"', "cameras[0].schedule.every: expected a duration such as"),
        ('every = "1h"', 'every = "-5m"', "cameras[0].schedule.every: expected a duration such as"),
        ('every = "1h"', 'evry = "1h"', "schedule.evry: unknown key; did you mean 'every'?"),
        ('id = "a"', 'id = "a"\ntake = "oldest"', "cameras[0].take: expected 'newest' or 'every'"),
        ('id = "a"', 'id = "a"\ntake = "Newest"', "cameras[0].take: expected 'newest' or 'every'"),
        ('id = "a"', 'id = "a"\ndeadline_s = 0', "cameras[0].deadline_s: expected greater than 0"),
        ('id = "a"', 'id = "a"\ndeadline_s = inf', "cameras[0].deadline_s: expected "),
        ('id = "a"', 'id = "a"\ndeadline_s = nan', "cameras[0].deadline_s: expected "),
        ('id = "a"', 'id = "a"\nregion = [[[0, 0], [1, 1]]]', "cameras[0].region[0]: expected "),
        (
            'id = "a"',
            'id = "a"\nregion = [[[0, 0], [1, -1], [1, 1]]]',
            "cameras[0].region[0][1][1]: expected ",
        ),
        (
            'id = "a"',
            'id = "a"\nregion = [[[0, 0], [inf, 1], [1, 1]]]',
            "cameras[0].region[0][1][0]: expected ",
        ),
        (
            'id = "a"',
            'id = "a"\nregion = [[0, 0], [1, 0], [1, 1]]',
            "cameras[0].region[0][0]: expected ",
        ),
        ("[[cameras]]", "[[camera]]", "camera: unknown key; did you mean 'cameras'?"),
        (
            "[[cameras]]",
            '[engine]\nbackend = "cuda"\n[[cameras]]',
            "engine.backend: expected 'auto', 'ort' or 'trt', found 'cuda'",
        ),
        (
            "[[cameras]]",
            '[engine]\nbackend = "TRT"\n[[cameras]]',
            "engine.backend: expected 'auto', 'ort' or 'trt', found 'TRT'",
        ),
        ("[[cameras]]", "[engine]\nbackend = true\n[[cameras]]", "engine.backend: expected "),
        (
            "[[cameras]]",
            "[engine]\nworkspace_mib = 63\n[[cameras]]",
            "engine.workspace_mib: expected greater than or equal to 64, found 63",
        ),
        (
            "[[cameras]]",
            '[engine]\nworkspace_mib = "1 GiB"\n[[cameras]]',
            "engine.workspace_mib: expected a valid integer",
        ),
        (
            "[[cameras]]",
            "[engine]\nworkspace_mib = 100.5\n[[cameras]]",
            "engine.workspace_mib: expected ",
        ),
        (
            "[[cameras]]",
            "[engine]\nworkspace = 512\n[[cameras]]",
            "engine.workspace: unknown key; did you mean 'workspace_mib'?",
        ),
        ("[[cameras]]", "[engines]\n[[cameras]]", "engines: unknown key; did you mean 'engine'?"),
        ("[[cameras]]", "[broker]\nurl = 1883\n[[cameras]]", "broker.url: expected "),
        (
            "[[cameras]]",
            '[broker]\nurl = "broker.example"\n[[cameras]]',
            "broker.url: expected a broker such as mqtt://host:1883, found 'broker.example'",
        ),
    ],
)
def test_a_mistake_names_its_path_and_what_would_be_right(
    tmp_path: Path, right: str, wrong: str, said: str
) -> None:
    assert right in SMALL
    assert said in mistakes(tmp_path, SMALL.replace(right, wrong))


def test_all_mistakes_come_in_one_message(tmp_path: Path) -> None:
    text = SMALL.replace('"salluit"', '"S"').replace('"1h"', '"soon"').replace('path = "p"', "")
    lines = mistakes(tmp_path, text).splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "station.id",
        "cameras[0].path",
        "cameras[0].schedule.every",
    ]


def test_a_second_camera_of_the_same_name_is_refused(tmp_path: Path) -> None:
    camera = SMALL[SMALL.index("[[cameras]]") :]
    assert "each camera id once, not a, a" in mistakes(tmp_path, SMALL + camera)


def test_a_station_without_cameras_is_refused(tmp_path: Path) -> None:
    none = SMALL[: SMALL.index("[[cameras]]")]
    assert "cameras: missing" in mistakes(tmp_path, none)
    assert "cameras: expected " in mistakes(tmp_path, "cameras = []\n" + none)


def test_a_missing_file_says_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"station\.toml: cannot be read .*expected a station"):
        read_config(tmp_path / "station.toml")


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://harbour:s3cret@broker.example",
        "mqtt://:s3cret@broker.example:1883",
        "mqtt://harbour:s3cret@broker.example:port",
        "mqtts://harbour:s3cret@broker.example/x",
        "mqtt://harbour:s3cret/@broker.example",
    ],
)
def test_a_password_in_the_url_is_refused_and_never_repeated(tmp_path: Path, url: str) -> None:
    said = mistakes(tmp_path, SMALL + f'[broker]\nurl = "{url}"\n')
    assert "broker.url: expected a broker such as mqtt://host:1883" in said
    assert "s3cret" not in said
    assert "harbour:" not in said


def test_a_password_in_a_misspelt_place_is_not_repeated_either(tmp_path: Path) -> None:
    said = mistakes(tmp_path, 'broker = "mqtt://u:s3cret@broker.example"\n' + SMALL)
    assert "broker: expected " in said
    assert "s3cret" not in said


def test_a_password_on_the_command_line_is_refused_and_never_repeated() -> None:
    program = Path(sys.executable).with_name("icecam")
    command = [str(program), "watch", "mqtt://harbour:s3cret@broker.example"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 2
    assert "without user or password" in ended.stderr
    assert "s3cret" not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("30m", 1800), ("1h", 3600), ("1d", 86_400), ("1.5h", 5400), ("10 m", 600)],
)
def test_durations_are_read_with_their_unit(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds


@pytest.mark.parametrize("value", ["", "30", "m", "30w", "1h30m", "-1m", "0s", "1e3s", 30, None])
def test_what_is_no_duration_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="expected a duration such as 30m"):
        duration_s(value)


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("mqtt://127.0.0.1", ("127.0.0.1", 1883)),
        ("mqtt://broker.example:8883/", ("broker.example", 8883)),
        ("mqtt://[::1]:1884", ("::1", 1884)),
    ],
)
def test_a_broker_is_a_host_and_a_port(url: str, address: tuple[str, int]) -> None:
    assert broker_address(url) == address


@pytest.mark.parametrize(
    "url",
    [
        "",
        "mqtt://",
        "broker.example:1883",
        "http://broker.example",
        "mqtts://broker.example",
        "mqtt://broker.example:0",
        "mqtt://broker.example:65536",
        "mqtt://broker.example:x",
        "mqtt://broker.example/topic",
        "mqtt://broker.example?qos=1",
        "mqtt://[::1",
    ],
)
def test_what_is_no_plain_broker_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="expected a broker such as mqtt://host:1883"):
        broker_address(url)


def test_a_config_cannot_be_changed_after_it_was_read(tmp_path: Path) -> None:
    config = read_config(station_toml(tmp_path, SMALL))
    with pytest.raises(ValidationError, match="frozen"):
        config.station.id = "other"  # type: ignore[misc]

"""The icecam command as a user types it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest

from tests.stations import a_station, icecam

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Broker


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "2026-01-02T03-04-05.png"
    noise = np.random.default_rng(0).integers(0, 256, (360, 640, 3), dtype=np.uint8)
    cv2.imwrite(str(path), noise)
    return path


def test_once_says_what_it_found_and_writes_nothing_unasked(
    picture: Path, demo_bundle: Path
) -> None:
    before = set(picture.parent.iterdir())
    done = icecam("once", picture, "--bundle", demo_bundle, cwd=picture.parent)
    assert done.returncode == 0, done.stderr
    assert "2026-01-02 03:04:05 UTC (name)" in done.stdout
    assert set(picture.parent.iterdir()) == before


def test_once_writes_mask_overlay_and_json_that_agree(
    picture: Path, demo_bundle: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    done = icecam("once", picture, "--bundle", demo_bundle, "--json", "-o", out)
    assert done.returncode == 0, done.stderr
    body = json.loads((out / "coverage.json").read_text())
    assert json.loads(done.stdout) == body
    mask = cv2.imread(str(out / "mask.png"), cv2.IMREAD_UNCHANGED)
    assert list(mask.shape) == body["mask_size"] == [224, 384]
    ice, water = int((mask == 2).sum()), int((mask == 1).sum())
    expected = ice / (ice + water) if ice + water else None
    assert body["ice_pixel_fraction"] == pytest.approx(expected, abs=1e-6)
    assert cv2.imread(str(out / "overlay.png")).shape[1] == 640


@pytest.mark.data
def test_once_reads_a_real_frame(icecam_data: Path, demo_bundle: Path) -> None:
    frame = icecam_data / "agulhas_floes" / "images" / "2022-07-21_12-48-26.jpg"
    done = icecam("once", frame, "--bundle", demo_bundle, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["frame_size"] == [1080, 1920]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["once", "absent.jpg"], 1, "absent.jpg: cannot be read (No such file or directory)"),
        (["once", "README.md"], 1, "README.md: not a readable picture"),
        (["once", "x.jpg", "--bundle", "README.md"], 1, "README.md: not a whole uncompressed tar"),
        (["run", "--config", "absent.toml"], 2, "absent.toml: cannot be read"),
        (["check"], 2, "expected either --config or --bundle"),
        (["watch", "http://x"], 2, "expected a broker such as mqtt://host:1883"),
        (["watch", "mqtt://127.0.0.1:1"], 1, "broker 127.0.0.1:1 cannot be reached"),
        (["demo", "--frames", "systemd"], 2, "systemd holds no picture"),
        (["demo", "-o", "README.md"], 2, "--out README.md cannot be made"),
    ],
)
def test_bad_input_is_one_line_and_an_exit_status(
    arguments: list[str], status: int, said: str
) -> None:
    done = icecam(*arguments)
    assert done.returncode == status
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    done = icecam("once", "absent.jpg", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_check_replays_the_golden_frames(demo_bundle: Path) -> None:
    done = icecam("check", "--bundle", demo_bundle)
    assert done.returncode == 0, done.stdout
    assert "golden frames 4: agreement 100.000% of the mask" in done.stdout


def test_check_finds_everything_that_is_wrong_at_once(tmp_path: Path, demo_bundle: Path) -> None:
    damaged = tmp_path / "damaged.icecam"
    damaged.write_bytes(demo_bundle.read_bytes()[:50_000])
    config = a_station(tmp_path, "damaged.icecam", path="no-such-folder")
    done = icecam("check", "--config", config)
    assert done.returncode == 1
    assert done.stdout.count("✗") == 3
    for found in ("damaged.icecam", "no-such-folder", "127.0.0.1:1 cannot be reached"):
        assert found in done.stdout


def test_an_unsigned_bundle_runs_only_where_the_config_says_so(
    tmp_path: Path, demo_bundle: Path
) -> None:
    config = a_station(tmp_path, demo_bundle)
    done = icecam("run", "--config", config)
    assert done.returncode == 1
    assert "is not signed" in done.stderr
    assert not (tmp_path / "state").exists()


def test_a_station_does_not_start_on_a_damaged_signature(tmp_path: Path, demo_bundle: Path) -> None:
    bogus = tmp_path / "bogus.icecam"
    with tarfile.open(demo_bundle) as whole, tarfile.open(bogus, "w") as copy:
        for position, entry in enumerate(whole):
            if position == 1:
                signature = tarfile.TarInfo("manifest.sig")
                signature.size = 3
                copy.addfile(signature, io.BytesIO(b"sig"))
            copy.addfile(entry, whole.extractfile(entry))
    config = a_station(tmp_path, "bogus.icecam")
    done = icecam("run", "--config", config)
    assert done.returncode == 1
    assert "manifest.sig is damaged (3 bytes)" in done.stderr


@pytest.mark.broker
@pytest.mark.slow
def test_the_demo_leaves_what_a_subscriber_received(tmp_path: Path, demo_bundle: Path) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    for minute in range(3):
        noise = np.random.default_rng(minute).integers(0, 256, (180, 320, 3), dtype=np.uint8)
        cv2.imwrite(str(frames / f"2026-01-01_00-0{minute}-00.png"), noise)
    assert demo_bundle.exists()
    done = icecam("demo", "--frames", frames, "-o", tmp_path / "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    out = {path.name for path in (tmp_path / "out").iterdir()}
    assert out == {"coverage.json", "mask.png", "overlay.png", "health.json"}
    body = json.loads((tmp_path / "out" / "coverage.json").read_text())
    assert (body["seq"], body["captured_at"]) == (3, "2026-01-01T00:02:00.000Z")
    health = json.loads((tmp_path / "out" / "health.json").read_text())
    assert health["engine"]["state"] == "ready"
    assert done.stdout.count("observation") >= 3


@pytest.mark.broker
def test_watch_prints_a_line_per_message_in_a_pipe(broker: Broker, tmp_path: Path) -> None:
    from edge.contract.messages import Topics

    publish = ["mosquitto_pub", "-p", str(broker.address[1]), "-r", "-t", Topics("a").state]
    subprocess.run([*publish, "-m", "online"], check=True)
    with subprocess.Popen(
        [sys.executable, "-m", "edge", "watch", broker.url],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "icecam/v1/a/state  online\n"
        process.kill()

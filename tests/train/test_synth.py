"""Synthetic scenes: the same seed gives the same bytes, and the truth is true."""

from __future__ import annotations

import csv
import itertools
import re
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from PIL import Image

from edge.contract.boundary import read_toml
from edge.contract.errors import ConfigError
from tests.bench.synth_baseline import CEILING, baseline_miou
from train.synth import Camera, Scene, make_scene, write_dataset

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

SMALL = (90, 160)
MIDDLE = (180, 320)
SEEDS = range(40)
OTHER, WATER, ICE = 0, 1, 2


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    """Scenes that several tests look at."""
    return [make_scene(seed, MIDDLE) for seed in SEEDS]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset: 7 poses, the last one cut short."""
    out = tmp_path_factory.mktemp("synthetic") / "new" / "folder"
    write_dataset(out, count=20, seed=5, size=SMALL, sequence_length=3)
    return out


def cameras() -> list[Camera]:
    """Poses of every kind: level, tilted, rolled, wide and narrow."""
    poses = itertools.product((4.0, 38.5), (0.0, 9.0, 33.0), (-4.0, 0.0, 2.5), (25.0, 60.0))
    return [
        Camera(height_m=height, tilt_deg=tilt, roll_deg=roll, vertical_fov_deg=fov, size=(360, 640))
        for height, tilt, roll, fov in poses
    ]


def projected(camera: Camera, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """World points (n, 3) to pixels (n, 2) by OpenCV, from the camera's height and angles alone."""
    tilt = np.radians(90 + camera.tilt_deg)
    down_to_level = cv2.Rodrigues(np.array([tilt, 0, 0]))[0]
    rolled = cv2.Rodrigues(np.array([0, 0, -np.radians(camera.roll_deg)]))[0]
    rotation = rolled @ down_to_level
    height, width = camera.size
    f = height / 2 / np.tan(np.radians(camera.vertical_fov_deg / 2))
    matrix = np.array([[f, 0, (width - 1) / 2], [0, f, (height - 1) / 2], [0, 0, 1]])
    translation = -rotation @ np.array([0, 0, camera.height_m])
    turned = cv2.Rodrigues(rotation)[0]
    return np.asarray(cv2.projectPoints(points, turned, translation, matrix, None)[0][:, 0])


def pixel_areas_m2(camera: Camera) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Ground area and distance of each pixel: its four corners through OpenCV's homography.

    Pixels that reach the horizon get an infinite distance.
    """
    ground = np.array([[-20, 60], [20, 60], [20, 120], [-20, 120]], np.float64)
    seen = projected(camera, np.column_stack([ground, np.zeros(4)]))
    to_ground = cv2.getPerspectiveTransform(seen.astype(np.float32), ground.astype(np.float32))
    height, width = camera.size
    x, y = np.meshgrid(np.arange(width + 1) - 0.5, np.arange(height + 1) - 0.5)
    corners = to_ground @ np.stack([x.ravel(), y.ravel(), np.ones(x.size)])
    centre = to_ground @ np.array([(width - 1) / 2, height - 1, 1])
    ahead = (corners[2] * centre[2] > 0).reshape(x.shape)
    east, north = (corners[:2] / corners[2]).reshape(2, *x.shape)
    a, b, c, d = (
        np.stack([part[rows, columns] for part in (east, north)])
        for rows, columns in itertools.product((slice(-1), slice(1, None)), repeat=2)
    )
    diagonals = (d - a)[0] * (c - b)[1] - (d - a)[1] * (c - b)[0]
    usable = ahead[:-1, :-1] & ahead[:-1, 1:] & ahead[1:, :-1] & ahead[1:, 1:]
    distance = np.where(usable, np.hypot(*((a + b + c + d) / 4)), np.inf)
    return np.abs(diagonals) / 2, distance


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again = make_scene(11, SMALL), make_scene(11, SMALL)
    assert first.image.tobytes() == again.image.tobytes()
    assert first.mask.tobytes() == again.mask.tobytes()
    assert first.ground_area_fraction == again.ground_area_fraction
    assert first.conditions == again.conditions


def test_another_seed_gives_another_scene() -> None:
    images = {make_scene(seed, SMALL).image.tobytes() for seed in range(6)}
    assert len(images) == 6


def test_a_pose_keeps_its_camera_and_coast() -> None:
    first, *others = [make_scene(seed, SMALL, pose_seed=3) for seed in range(4)]
    for scene in others:
        assert scene.camera == first.camera
        assert np.array_equal(scene.mask == OTHER, first.mask == OTHER)
        assert scene.image.tobytes() != first.image.tobytes()


def test_image_and_mask_are_as_documented(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.dtype == scene.mask.dtype == np.uint8
        assert scene.image.shape == (*MIDDLE, 3)
        assert scene.mask.shape == scene.camera.size == MIDDLE
        assert set(np.unique(scene.mask)) <= {OTHER, WATER, ICE}


def test_each_class_has_its_share(scenes: list[Scene]) -> None:
    counts = np.bincount(np.concatenate([scene.mask.ravel() for scene in scenes]), minlength=3)
    assert (counts / counts.sum() > 0.15).all()


def test_fractions_span_open_water_to_fast_ice(scenes: list[Scene]) -> None:
    fractions = [scene.ground_area_fraction for scene in scenes]
    known = np.array([fraction for fraction in fractions if fraction is not None])
    assert known.min() < 0.01
    assert known.max() > 0.99
    assert (np.histogram(known, 4, (0, 1))[0] >= 3).all()


def test_weather_and_light_vary(scenes: list[Scene]) -> None:
    seen = {scene.conditions.lighting for scene in scenes}
    assert seen == {"fog", "dusk", "overcast", "glare", "clear"}


def test_the_mask_has_next_to_no_speckle(scenes: list[Scene]) -> None:
    tiny = 0
    for scene, value in itertools.product(scenes, (OTHER, WATER, ICE)):
        same = (scene.mask == value).astype(np.uint8)
        areas = cv2.connectedComponentsWithStats(same, connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        tiny += int(areas[areas < 4].sum())
    assert tiny / (len(scenes) * scenes[0].mask.size) < 0.001


@pytest.mark.parametrize("camera", cameras(), ids=str)
def test_projection_agrees_with_opencv(camera: Camera) -> None:
    rng = np.random.default_rng(1)
    points = rng.uniform([-80, 60, -3], [80, 900, 60], (50, 3))
    np.testing.assert_allclose(camera.project(points), projected(camera, points), atol=1e-6)
    flat = np.column_stack([points[:, :2], np.zeros(50)])
    seen = camera.ground_to_pixel(points[:, :2])
    np.testing.assert_allclose(seen, projected(camera, flat), atol=1e-6)


@pytest.mark.parametrize("camera", cameras(), ids=str)
def test_a_pixel_looks_at_the_ground_that_projects_to_it(camera: Camera) -> None:
    pixels = np.random.default_rng(2).uniform([0, 0], [639, 359], (200, 2))
    ground = camera.pixel_to_ground(pixels)
    below = np.isfinite(ground[:, 0])
    points = np.column_stack([ground[below], np.zeros(below.sum())])
    np.testing.assert_allclose(projected(camera, points), pixels[below], atol=1e-6)


def test_the_sky_has_no_ground_and_the_back_no_pixel() -> None:
    camera = Camera(
        height_m=10,
        tilt_deg=5,
        roll_deg=0,
        vertical_fov_deg=40,
        size=(360, 640),
    )
    assert np.isnan(camera.pixel_to_ground([[320, 0]])).all()
    assert np.isnan(camera.project([[0, -100, 0]])).all()


def test_the_true_fraction_agrees_with_pixel_areas() -> None:
    """A raster of the ground and a sum over pixels, by two routes, measure the same ice."""
    errors = []
    for seed in range(12):
        scene = make_scene(seed, (360, 640))
        area, distance = pixel_areas_m2(scene.camera)
        near = distance <= scene.far_limit_m
        ice, water = (float(area[near & (scene.mask == value)].sum()) for value in (ICE, WATER))
        assert scene.ground_area_fraction is not None
        errors.append(scene.ground_area_fraction - ice / (ice + water))
    assert np.abs(errors).max() < 0.02
    assert abs(np.mean(errors)) < 0.01


def test_the_truth_hardly_depends_on_the_picture_size() -> None:
    for seed in range(6):
        small, large = make_scene(seed, MIDDLE), make_scene(seed, (360, 640))
        assert small.ground_area_fraction == pytest.approx(large.ground_area_fraction, abs=0.02)


def test_a_dataset_holds_matching_pictures_and_masks(dataset: Path) -> None:
    names = {path.stem for path in (dataset / "images").iterdir()}
    assert len(names) == 20
    assert names == {path.stem for path in (dataset / "masks").iterdir()}
    for name in names:
        with Image.open(dataset / "images" / f"{name}.jpg") as picture:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", SMALL[::-1])
        with Image.open(dataset / "masks" / f"{name}.png") as mask:
            assert (mask.format, mask.mode, mask.size) == ("PNG", "L", SMALL[::-1])
            assert set(np.unique(np.asarray(mask))) <= {OTHER, WATER, ICE}


def test_the_truth_table_tells_of_each_scene(dataset: Path) -> None:
    with (dataset / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == sorted(p.stem for p in (dataset / "images").iterdir())
    for row in rows:
        mask = cv2.imread(str(dataset / "masks" / f"{row['name']}.png"), cv2.IMREAD_UNCHANGED)
        ice, water = np.count_nonzero(mask == ICE), np.count_nonzero(mask == WATER)
        assert float(row["ice_pixel_fraction"]) == pytest.approx(ice / (ice + water))
        assert 0 <= float(row["ground_area_fraction"]) <= 1
        assert (int(row["height"]), int(row["width"])) == SMALL
        assert row["name"].startswith(row["group"] + "_")
    assert len({row["camera_height_m"] for row in rows if row["group"] == "pose-0002"}) == 1


def test_dataset_toml_splits_by_pose(dataset: Path) -> None:
    told = read_toml(dataset / "dataset.toml", what="a dataset")
    assert told["schema"] == "icecam.dataset/1"
    assert [entry["values"] for entry in told["classes"]] == [[OTHER], [WATER], [ICE]]
    groups = set()
    for path in dataset.glob(told["images"]):
        found = re.match(told["group"], path.name)
        assert found
        groups.add(found.group(1))
        assert (dataset / told["masks"].format(stem=path.stem)).is_file()
    validation, test = set(told["split"]["validation"]), set(told["split"]["test"])
    assert validation
    assert test
    assert not validation & test
    assert validation | test < groups


def test_the_same_seed_writes_the_same_files(dataset: Path, tmp_path: Path) -> None:
    done: list[int] = []
    write_dataset(
        tmp_path,
        count=20,
        seed=5,
        size=SMALL,
        sequence_length=3,
        progress=done.append,
    )
    assert done == list(range(1, 21))
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert len(written) == 42
    assert written == {
        path.relative_to(dataset): path.read_bytes() for path in dataset.rglob("*.*")
    }


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    with pytest.raises(ConfigError, match="not empty"):
        write_dataset(tmp_path, count=9, seed=0, size=SMALL, sequence_length=3)
    assert [path.name for path in tmp_path.iterdir()] == ["kept.txt"]
    assert kept.read_text() == "mine"


@pytest.mark.parametrize(
    ("count", "seed", "size", "length"),
    [(8, 0, SMALL, 8), (0, 0, SMALL, 8), (9, -1, SMALL, 3), (9, 0, (8, 160), 3), (9, 0, SMALL, 0)],
)
def test_numbers_that_make_no_dataset_are_refused(
    tmp_path: Path,
    count: int,
    seed: int,
    size: tuple[int, int],
    length: int,
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ConfigError, match="expected"):
        write_dataset(out, count=count, seed=seed, size=size, sequence_length=length)
    assert not out.exists()


def test_colour_and_row_alone_do_not_solve_it() -> None:
    miou, _ = baseline_miou(train=40, test=20, size=SMALL)
    assert 0.2 < miou <= CEILING

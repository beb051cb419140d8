"""From runs to a bundle: what it answers is what the networks answered where they were trained."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from edge.contract.bundle import Bundle, HeldOut, open_bundle
from edge.contract.classes import Classes, ClassMap
from edge.contract.errors import BundleError, CameraError, ConfigError
from edge.engine import Answer, open_engine
from edge.engine.certify import GoldenAnswer, replay_golden
from edge.engine.ort import OrtBackend
from export.__main__ import _members, app
from export.graph import EnsembleGraph
from export.make import Made, _choose_golden, _is_new, choose_frames, make, read_metrics
from export.static_check import findings
from tests.train.classes import classes_of
from tests.train.conftest import write_tiny
from train.data.dataset import read_dataset
from train.ensembles import Weighing, write_ensemble
from train.evaluate.boundary import BoundaryCounts
from train.evaluate.evaluation import Evaluation
from train.evaluate.measure import IceFractions, ImageResult
from train.evaluate.record import write_json
from train.models.architectures import ARCHITECTURES, Member, build_member
from train.predict import open_predictor
from train.runs import Run, Training, load_member, read_run, write_run

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from train.data.dataset import Dataset

    Bytes = NDArray[np.uint8]

SIZE = (96, 160)
SERIAL = 7


def random_member(architecture: str) -> Member:
    """A network with random parameters whose normalisation does something, as after training."""
    torch.manual_seed(len(architecture))
    member = build_member(architecture, class_map=classes_of(3))
    for module in member.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return member


def a_run(folder: Path, architecture: str, class_map: Classes, **changes: Any) -> Run:  # noqa: ANN401
    fields: dict[str, Any] = {
        "name": architecture,
        "class_map": class_map,
        "input_size": SIZE,
        "training": Training(dataset="none", seed=0, epochs=0),
        **changes,
    }
    return write_run(folder, random_member(architecture), **fields)


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine torch's threads wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder with a dataset: three days, two frames each, 48x64."""
    return write_tiny(tmp_path / "tiny")


@pytest.fixture
def tiny_dataset(tiny: Path) -> Dataset:
    """The same, read."""
    return read_dataset(tiny)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, class_map: ClassMap) -> list[Run]:
    folder = tmp_path_factory.mktemp("runs")
    return [a_run(folder / name, name, class_map) for name in ("unet", "pspnet")]


@pytest.fixture(scope="module")
def frames(icecam_data: Path) -> list[Bytes]:
    """Real pictures as OpenCV reads them: ice, and open water in colour."""
    paths = sorted((icecam_data / "agulhas_floes" / "images").glob("*.jpg"))[:3]
    paths += sorted((icecam_data / "inland_water" / "images").glob("*.jpg"))[:2]
    return [cv2.imread(str(path)).astype(np.uint8) for path in paths]


@pytest.fixture(scope="module")
def small(frames: list[Bytes]) -> list[Bytes]:
    return [
        cv2.resize(frame, SIZE[::-1], interpolation=cv2.INTER_AREA).astype(np.uint8)
        for frame in frames
    ]


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bundles") / "test-ice.icecam"


@pytest.fixture(scope="module")
def made(runs: list[Run], frames: list[Bytes], out: Path) -> Made:
    return make(runs, out, frames=frames, serial=SERIAL)


@pytest.fixture(scope="module")
def bundle(made: Made, out: Path) -> Bundle:
    assert made.frames > 0
    return open_bundle(out)


@pytest.fixture(scope="module")
def in_torch(runs: list[Run]) -> EnsembleGraph:
    """The ensemble of the networks as they are, no layer replaced."""
    return EnsembleGraph([load_member(run) for run in runs], [1.0, 1.0], [1.0, 1.0]).eval()


@pytest.fixture(scope="module")
def session(bundle: Bundle) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(
        bundle.read("ensemble.onnx"), providers=["CPUExecutionProvider"]
    )


def probabilities(graph: EnsembleGraph, frame: Bytes) -> NDArray[np.float32]:
    """The mean over members `(C, H, W)`, from each network's own logits."""
    pixels = torch.from_numpy(frame).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        each = [torch.softmax(member(pixels), dim=1)[0] for member in graph.members]
    return torch.stack(each).mean(dim=0).numpy()


@pytest.mark.data
def test_onnx_runtime_and_torch_agree_on_real_frames(
    session: onnxruntime.InferenceSession, in_torch: EnsembleGraph, small: list[Bytes], made: Made
) -> None:
    differing = clear = total = 0
    classes = set()
    for frame in small:
        mask, confidence, members = session.run(None, {"frame": frame[None]})
        with torch.inference_mode():
            expected = [one.numpy() for one in in_torch(torch.from_numpy(frame[None]))]
        best = np.sort(probabilities(in_torch, frame), axis=0)
        differs = mask[0] != expected[0][0]
        differing += int(differs.sum())
        clear += int((differs & (best[-1] - best[-2] > 0.01)).sum())
        total += differs.size
        assert np.abs(confidence.astype(int) - expected[1]).max() <= 2
        assert (members != expected[2]).mean() <= 0.001
        classes |= set(np.unique(mask).tolist())
    assert differing / total <= 0.001
    assert clear == 0
    assert len(classes) > 1  # else agreement would say little
    assert made.agreement >= 0.999
    assert made.frames == len(small)


def test_a_member_s_network_sees_red_green_blue_normalised_as_imagenet_s(runs: list[Run]) -> None:
    # torchvision's published mean and deviation, for RGB between 0 and 1.
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    frame = noise()[0]
    rgb = (frame[:, :, ::-1] / 255 - mean) / deviation
    member = load_member(runs[0])
    with torch.inference_mode():
        expected = member.network(torch.tensor(rgb.transpose(2, 0, 1)[None], dtype=torch.float32))
        found = member(torch.from_numpy(frame.transpose(2, 0, 1)[None]).float())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.data
def test_the_graph_takes_and_gives_bytes_of_static_shapes_under_the_agreed_names(
    session: onnxruntime.InferenceSession,
) -> None:
    (taken,) = session.get_inputs()
    assert (taken.name, taken.type, taken.shape) == ("frame", "tensor(uint8)", [1, *SIZE, 3])
    given = [(one.name, one.type, one.shape) for one in session.get_outputs()]
    assert given == [
        ("mask", "tensor(uint8)", [1, *SIZE]),
        ("confidence", "tensor(uint8)", [1, *SIZE]),
        ("member_masks", "tensor(uint8)", [2, *SIZE]),
    ]


@pytest.mark.data
def test_the_exported_graph_passes_the_static_check_and_onnx_s_own(bundle: Bundle) -> None:
    model = onnx.load_from_string(bundle.read("ensemble.onnx"))
    onnx.checker.check_model(model, full_check=True)
    assert findings(model) == []
    assert [opset.domain for opset in model.opset_import] == [""]


@pytest.mark.data
def test_the_manifest_says_what_is_in_the_bundle(
    bundle: Bundle, runs: list[Run], class_map: ClassMap
) -> None:
    manifest = bundle.manifest
    assert (manifest.id, manifest.serial) == ("test-ice", SERIAL)
    assert manifest.class_map == class_map
    assert (manifest.input.height, manifest.input.width) == SIZE
    assert [(graph.name, graph.file, graph.precision) for graph in manifest.graphs] == [
        ("full", "ensemble.onnx", "float32")
    ]
    assert manifest.graphs[0].members == ("unet", "pspnet")
    assert manifest.graphs[0].weights == (0.5, 0.5)
    for run, member in zip(runs, manifest.members, strict=True):
        assert (member.name, member.architecture) == (run.name, run.architecture)
        assert member.parameters == sum(p.numel() for p in load_member(run).parameters())
        assert member.training["dataset"] == "none"
    assert manifest.metrics is None


@pytest.mark.data
def test_golden_frames_are_real_frames_after_resize_and_their_answers_are_torch_s(
    bundle: Bundle, small: list[Bytes], in_torch: EnsembleGraph
) -> None:
    found = set()
    for case in bundle.manifest.golden:
        frame = cv2.imdecode(np.frombuffer(bundle.read(case.frame), np.uint8), cv2.IMREAD_COLOR)
        assert frame is not None
        matches = [i for i, one in enumerate(small) if np.array_equal(one, frame)]
        assert len(matches) == 1
        found |= set(matches)
        mean = probabilities(in_torch, frame.astype(np.uint8))
        best = np.sort(mean, axis=0)
        with np.load(io.BytesIO(bundle.read(case.answer))) as stored:
            clear = best[-1] - best[-2] > 1e-4
            assert np.array_equal(stored["mask"][clear], mean.argmax(axis=0)[clear])
            assert np.abs(stored["confidence"] - 255 * best[-1]).max() <= 0.55
            assert np.abs(stored["margin"] - (best[-1] - best[-2])).max() <= 1e-3
            assert stored["member_masks"].shape == (2, *SIZE)
    assert len(found) == len(bundle.manifest.golden) == 4


@pytest.mark.data
def test_the_bundle_that_was_made_certifies_here(bundle: Bundle) -> None:
    with open_engine(bundle) as engine:
        verdict = replay_golden(bundle, engine)
    assert verdict.passed
    assert verdict.frames == 4


@pytest.mark.data
def test_what_no_golden_frame_shows_is_told(made: Made, bundle: Bundle) -> None:
    shown: set[int] = set()
    for case in bundle.manifest.golden:
        with np.load(io.BytesIO(bundle.read(case.answer))) as stored:
            shown |= set(np.unique(stored["mask"]).tolist())
    assert made.unseen == tuple(
        name for index, name in enumerate(("other", "water", "ice")) if index not in shown
    )


def golden(mask: Bytes) -> GoldenAnswer:
    answer = Answer(mask=mask, confidence=mask, member_masks=mask[None])
    return GoldenAnswer(answer=answer, margin=np.ones(mask.shape, np.float16))


def test_golden_frames_are_chosen_so_that_every_class_is_somewhere() -> None:
    masks = [np.full((20, 20), index % 2, np.uint8) for index in range(12)]
    masks[7][3, 4:9] = 2  # five pixels in one frame of twelve
    chosen = _choose_golden([golden(mask) for mask in masks], 3)
    assert len(chosen) == len(set(chosen)) == 4
    assert 7 in chosen
    assert {0, 1, 2} <= {int(v) for index in chosen for v in np.unique(masks[index])}


def test_fewer_frames_than_golden_ones_are_all_taken() -> None:
    assert _choose_golden([golden(np.zeros((4, 4), np.uint8))], 3) == [0]


def noise() -> list[Bytes]:
    return list(np.random.default_rng(1).integers(0, 256, (2, 96, 160, 3), np.uint8))


@pytest.mark.parametrize(
    "architecture", [name for name, row in ARCHITECTURES.items() if row.kind == "surfaces"]
)
def test_every_semantic_architecture_exports_to_a_graph_that_answers_as_torch_does(
    tmp_path: Path, class_map: ClassMap, architecture: str
) -> None:
    # 96x160 in cells of 8, 16 or 32 pixels: the pyramids' 2, 3 and 6 parts don't all divide it
    run = a_run(tmp_path / "run", architecture, class_map)
    made = make([run], tmp_path / "one.icecam", frames=noise())
    assert made.agreement >= 0.999
    assert open_bundle(tmp_path / "one.icecam").manifest.members[0].architecture == architecture


def other_classes(class_map: ClassMap, change: str) -> ClassMap:
    surfaces = [one.model_dump() for one in class_map.root]
    if change == "name":
        surfaces[2]["name"] = "floe"
    elif change == "role":
        surfaces[0]["role"] = "water"
    else:
        surfaces[1]["name"], surfaces[2]["name"] = surfaces[2]["name"], surfaces[1]["name"]
    return ClassMap.model_validate(surfaces)


@pytest.mark.parametrize("change", ["name", "role", "order"])
def test_runs_whose_classes_differ_are_refused_and_nothing_is_written(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, change: str
) -> None:
    other = a_run(tmp_path / "run", "unet", other_classes(class_map, change), name="other")
    out = tmp_path / "out.icecam"
    with pytest.raises(ConfigError, match=r"class maps differ: run 'unet' has .* run 'other' has"):
        make([runs[0], other], out, frames=noise())
    assert not out.exists()


def test_colours_and_labels_that_differ_are_no_obstacle_to_going_on(
    tmp_path: Path, runs: list[Run], class_map: ClassMap
) -> None:
    surfaces = [{**one.model_dump(), "colour": (1, 2, 3)} for one in class_map.root]
    painted = a_run(tmp_path / "a", "unet", ClassMap.model_validate(surfaces), name="painted")
    wider = a_run(tmp_path / "b", "unet", class_map, name="wider", input_size=(96, 192))
    # Past the classes: it is the third run's size that is refused.
    with pytest.raises(
        ConfigError, match=r"input sizes differ: .*\(96, 160\), run 'wider' \(96, 1"
    ):
        make([runs[0], painted, wider], tmp_path / "out.icecam", frames=noise())
    assert not (tmp_path / "out.icecam").exists()


@pytest.mark.data
def test_a_graph_that_answers_otherwise_than_torch_is_not_written(
    bundle: Bundle,
    runs: list[Run],
    frames: list[Bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = bundle.read("ensemble.onnx")
    run = OrtBackend.run

    def disagreeing(self: OrtBackend, frame: Bytes) -> Answer:
        answer = run(self, frame)
        mask = answer.mask.copy()
        surest = answer.confidence.argmax()  # one clear pixel is too much
        mask.flat[surest] = (mask.flat[surest] + 1) % 3
        return Answer(mask=mask, confidence=answer.confidence, member_masks=answer.member_masks)

    monkeypatch.setattr("export.make._to_onnx", lambda *_: raw)
    monkeypatch.setattr(OrtBackend, "run", disagreeing)
    out = tmp_path / "out.icecam"
    with pytest.raises(BundleError, match=r"; 2 clear disagreements; .*Nothing was written"):
        make(runs, out, frames=frames[:2])
    assert list(tmp_path.iterdir()) == []


def test_two_runs_of_one_name_are_refused_and_nothing_is_written(
    runs: list[Run], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="two runs are named 'unet'"):
        make([*runs, runs[0]], tmp_path / "out.icecam", frames=noise())
    assert list(tmp_path.iterdir()) == []


def test_frames_come_evenly_from_a_folder_of_pictures(tmp_path: Path) -> None:
    for number in range(47):
        shade = np.full((4, 6, 3), number * 5, np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number:03}.png"), shade)
    (tmp_path / "notes.txt").write_text("no picture", encoding="utf-8")
    chosen = [int(frame[0, 0, 0]) // 5 for frame in choose_frames(None, tmp_path)]
    assert chosen == list(range(0, 48, 2))  # 24 of 47: every second, first and last among them


def test_without_pictures_to_check_with_nothing_is_begun(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="either --data or --frames"):
        choose_frames(None, None)
    with pytest.raises(ConfigError, match="no pictures"):
        choose_frames(None, tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"no picture")
    with pytest.raises(CameraError, match=r"a\.jpg"):
        choose_frames(None, tmp_path)


def test_the_command_line_names_what_does_not_fit_and_leaves_with_status_2(
    tmp_path: Path, runs: list[Run], class_map: ClassMap
) -> None:
    other = a_run(tmp_path / "run", "unet", other_classes(class_map, "name"), name="other")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    assert cv2.imwrite(str(pictures / "a.png"), noise()[0])
    command = [sys.executable, "-m", "export", "make", str(runs[0].folder), str(other.folder)]
    command += ["--frames", str(pictures), "--out", str(tmp_path / "out.icecam")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert "error: class maps differ: run 'unet' has" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (tmp_path / "out.icecam").exists()


def test_a_run_whose_parameters_were_changed_is_refused(tmp_path: Path, runs: list[Run]) -> None:
    copy = tmp_path / "run"
    shutil.copytree(runs[0].folder, copy)
    model = copy / "model.safetensors"
    raw = bytearray(model.read_bytes())
    raw[-1] ^= 1
    model.write_bytes(raw)
    changed = Run(folder=copy, file=runs[0].file)
    with pytest.raises(ConfigError, match="sha256"):
        make([changed], tmp_path / "out.icecam", frames=noise())
    assert not (tmp_path / "out.icecam").exists()


@pytest.fixture(scope="module")
def floes_run(runs: list[Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that calls itself Mask R-CNN; nothing in it is read but that."""
    folder = tmp_path_factory.mktemp("floes") / "floes"
    shutil.copytree(runs[0].folder, folder)
    toml = (folder / "run.toml").read_text().replace('"unet"', '"maskrcnn"')
    (folder / "run.toml").write_text(toml.replace('name = "maskrcnn"', 'name = "floes"'))
    return read_run(folder)


@pytest.fixture(scope="module")
def weighed(
    runs: list[Run],
    floes_run: Run,
    frames: list[Bytes],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, str]:
    """A bundle of three weighed runs, made by the command line, and what that said."""
    folder = tmp_path_factory.mktemp("weighed")
    (folder / "frames").mkdir()
    for number, frame in enumerate(frames):
        assert cv2.imwrite(str(folder / "frames" / f"{number}.png"), frame)
    weighing = Weighing(
        weights=(0.1, 0.6, 0.3),
        temperatures=(0.4, 1.0, 2.5),
        how_weighed="fitted",
        how_calibrated="fitted",
    )
    write_ensemble(folder / "three.toml", [runs[0], floes_run, runs[1]], weighing)
    out = folder / "weighed.icecam"
    arguments = ["make", str(folder / "three.toml"), "--frames", str(folder / "frames")]
    ended = CliRunner().invoke(app, [*arguments, "-o", str(out)])
    assert ended.exit_code == 0, ended.output
    return out, ended.output


@pytest.mark.data
def test_an_ensemble_s_weights_and_temperatures_are_in_the_bundle_without_what_has_no_graph(
    weighed: tuple[Path, str],
) -> None:
    """0.1 and 0.3 of the two that are left make 1/4 and 3/4."""
    manifest = open_bundle(weighed[0]).manifest
    assert [member.name for member in manifest.members] == ["unet", "pspnet"]
    assert [member.weight for member in manifest.members] == pytest.approx([0.25, 0.75])
    assert [member.temperature for member in manifest.members] == [0.4, 2.5]
    assert manifest.graphs[0].weights == pytest.approx((0.25, 0.75))
    assert "left out: floes (" in weighed[1]
    assert "the bundle's ensemble is unet, pspnet" in weighed[1].replace("\n", " ")


@pytest.mark.data
def test_a_weighed_bundle_answers_as_the_ensemble_in_torch(
    weighed: tuple[Path, str], runs: list[Run], frames: list[Bytes], tmp_path: Path
) -> None:
    weighing = Weighing(
        weights=(0.25, 0.75),
        temperatures=(0.4, 2.5),
        how_weighed="fitted",
        how_calibrated="fitted",
    )
    write_ensemble(tmp_path / "two.toml", runs, weighing)
    alike = total = moved = 0
    with (
        open_predictor(weighed[0]) as bundle,
        open_predictor(tmp_path / "two.toml") as ensemble,
        open_predictor(runs[1].folder) as heaviest,
    ):
        for frame in frames:
            found, expected = bundle.segment(frame), ensemble.segment(frame)
            alike += int((found.mask == expected.mask).sum())
            moved += int((heaviest.segment(frame).mask != expected.mask).sum())
            total += found.mask.size
            assert found.confidence is not None
            assert expected.confidence is not None
            assert np.abs(found.confidence - expected.confidence).max() <= 1.5 / 255
    assert alike / total >= 0.999
    assert moved > 0  # else one member alone would have decided


@pytest.mark.data
def test_a_temperature_of_one_costs_no_step_in_the_graph(
    weighed: tuple[Path, str], bundle: Bundle
) -> None:
    assert not {"Div", "Mul"} & set(before_softmax(bundle))
    assert all(kind in {"Div", "Mul"} for kind in before_softmax(open_bundle(weighed[0])))


def before_softmax(bundle: Bundle) -> list[str]:
    """The kind of node that each member's logits come from."""
    graph = onnx.load_from_string(bundle.read("ensemble.onnx")).graph
    makers = {name: node.op_type for node in graph.node for name in node.output}
    found = [makers[node.input[0]] for node in graph.node if node.op_type == "Softmax"]
    assert len(found) == 2
    return found


@pytest.mark.data
def test_metrics_measured_elsewhere_go_into_the_manifest(
    bundle: Bundle,
    runs: list[Run],
    frames: list[Bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = bundle.read("ensemble.onnx")
    monkeypatch.setattr("export.make._to_onnx", lambda *_: raw)
    held_out = HeldOut(
        dataset="floes/leave-one-day-out",
        images=15,
        miou=0.8,
        pixel_accuracy=0.9,
        iou={"other": None, "water": 0.7, "ice": 0.9},
        ice_fraction_mae=0.03,
    )
    make(runs, tmp_path / "out.icecam", frames=frames[:2], held_out=held_out)
    assert open_bundle(tmp_path / "out.icecam").manifest.metrics == held_out


@pytest.mark.data
def test_metrics_of_members_that_have_no_graph_do_not_describe_the_bundle(
    bundle: Bundle,
    runs: list[Run],
    floes_run: Run,
    frames: list[Bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    raw = bundle.read("ensemble.onnx")
    monkeypatch.setattr("export.make._to_onnx", lambda *_: raw)
    held_out = HeldOut(
        dataset="floes/test", images=1, miou=1, pixel_accuracy=1, iou={}, ice_fraction_mae=0
    )
    said: list[str] = []
    make(
        [*runs, floes_run],
        tmp_path / "out.icecam",
        frames=frames[:2],
        held_out=held_out,
        say=said.append,
    )
    assert open_bundle(tmp_path / "out.icecam").manifest.metrics is None
    assert "the metrics are of all members together: the bundle gets none" in said


def evaluated(folder: Path, class_map: Classes, split: str) -> Path:
    """A file of one evaluation: one image of 4 pixels, all right."""
    confusion = np.diag([1, 1, 2]).astype(np.int64)
    image = ImageResult(
        stem="a",
        group="g",
        confusion=confusion,
        boundary=BoundaryCounts(intersections=np.ones(3, np.int64), unions=np.ones(3, np.int64)),
        ice=IceFractions(true=0.5, predicted=0.5),
        ice_area=None,
        reliability=None,
    )
    found = Evaluation(
        predictor="ensemble",
        dataset="shore",
        split=split,  # type: ignore[arg-type]
        class_map=class_map,
        images=(image,),
    )
    write_json(folder / "figures.json", [found])
    return folder / "figures.json"


@pytest.mark.parametrize("split", ["test", "cross-validation"])
def test_metrics_of_held_out_images_are_taken(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, split: str
) -> None:
    assert read_metrics(evaluated(tmp_path, class_map, split), runs).miou == 1


@pytest.mark.parametrize("split", ["train", "validation", "all"])
def test_metrics_of_images_that_members_have_seen_are_refused(
    tmp_path: Path, runs: list[Run], class_map: ClassMap, split: str
) -> None:
    with pytest.raises(ConfigError, match=f"was measured on shore/{split}"):
        read_metrics(evaluated(tmp_path, class_map, split), runs)


def test_metrics_of_other_classes_are_refused(tmp_path: Path, runs: list[Run]) -> None:
    with pytest.raises(ConfigError, match="was measured with the classes 0 class_0"):
        read_metrics(evaluated(tmp_path, classes_of(3), "test"), runs)


def test_test_images_that_a_run_has_seen_give_no_metrics(
    tmp_path: Path, tiny_dataset: Dataset, class_map: ClassMap
) -> None:
    training = Training(dataset="tiny", seed=0, epochs=1)
    seen, unseen = (
        a_run(
            tmp_path / name,
            "pspnet",
            class_map,
            name=name,
            training=training,
            metrics={"images": {"train": images, "validation": []}},
        )
        for name, images in (("seen", ["day-1_0", "day-3_1"]), ("unseen", ["day-1_0"]))
    )
    said: list[str] = []
    assert _is_new(tiny_dataset, [unseen], said.append)
    assert said == []
    assert not _is_new(tiny_dataset, [unseen, seen], said.append)
    assert said == [
        "run 'seen' has seen 1 of the 2 test images of tiny: the bundle gets no metrics"
    ]


def test_a_dataset_without_a_validation_split_gives_golden_frames_all_the_same(tiny: Path) -> None:
    toml = (tiny / "dataset.toml").read_text().replace('validation = ["day-2"]', "validation = []")
    (tiny / "dataset.toml").write_text(toml.replace('test = ["day-3"]', "test = []"))
    assert len(choose_frames(read_dataset(tiny), None)) == 6


def test_nothing_but_members_of_floes_is_refused(floes_run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing but members that see floes \(floes\)"):
        make([floes_run], tmp_path / "out.icecam", frames=noise())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("role", ["ice", "water"])
def test_classes_without_ice_or_water_are_refused_before_anything_is_built(
    tmp_path: Path, class_map: ClassMap, monkeypatch: pytest.MonkeyPatch, role: str
) -> None:
    surfaces = [one.model_dump() for one in class_map.root]
    for surface in surfaces:
        surface["role"] = "other" if surface["role"] == role else surface["role"]
    run = a_run(tmp_path / "run", "unet", Classes.model_validate(surfaces), name="first-stage")
    monkeypatch.setattr("export.make._graph", lambda *_: pytest.fail("built"))
    out = tmp_path / "out.icecam"
    with pytest.raises(ConfigError, match=f"run 'first-stage' has .*none of the role '{role}'"):
        make([run], out, frames=noise())
    assert not out.exists()


def test_an_ensemble_file_stands_alone_on_the_command_line(runs: list[Run], tmp_path: Path) -> None:
    (tmp_path / "e.toml").touch()
    with pytest.raises(ConfigError, match=r"e\.toml beside 1 more; expected run folders, or one"):
        _members([runs[0].folder, tmp_path / "e.toml"])

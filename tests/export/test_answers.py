"""What a bundle's graph answers is what the networks answer in torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import onnxruntime
import pytest
import torch

from edge.contract.bundle import Bundle, open_bundle
from export.graph import EnsembleGraph
from export.make import Made, make
from tests.export.small_runs import SIZE, a_run, noise, one_thread, random_member
from train.models.architectures import ARCHITECTURES
from train.runs import load_member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edge.contract.classes import ClassMap
    from train.runs import Run

    Bytes = NDArray[np.uint8]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def in_torch(runs: list[Run], class_map: ClassMap) -> EnsembleGraph:
    """The ensemble of the networks as they are, no layer replaced."""
    members = [load_member(run) for run in runs]
    kinds = [member.kind for member in members]
    return EnsembleGraph(members, [1, 1], [1, 1], kinds=kinds, class_map=class_map).eval()


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
    session: onnxruntime.InferenceSession,
    in_torch: EnsembleGraph,
    small: list[Bytes],
    made: tuple[Made, Bundle],
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
    assert made[0].agreement >= 0.999
    assert made[0].frames == len(small)


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


@pytest.mark.parametrize(
    "architecture", [name for name, row in ARCHITECTURES.items() if row.kind == "surfaces"]
)
def test_every_semantic_architecture_exports_to_a_graph_that_answers_as_torch_does(
    tmp_path: Path, class_map: ClassMap, architecture: str
) -> None:
    # 96x160 in cells of 8, 16 or 32 pixels: the pyramids' 2, 3 and 6 parts don't all divide it
    run = a_run(tmp_path / "run", random_member(architecture), class_map)
    made = make([run], tmp_path / "one.icecam", frames=noise(), float16=False)
    assert made.agreement >= 0.999
    assert open_bundle(tmp_path / "one.icecam").manifest.members[0].architecture == architecture

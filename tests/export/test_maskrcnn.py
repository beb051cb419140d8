"""The static Mask R-CNN against torchvision's, which the member itself runs."""

from __future__ import annotations

import warnings
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime
import onnxslim
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from edge.contract.boundary import parse
from edge.contract.errors import ConfigError
from export.maskrcnn import SUPPRESSION_STEPS, StaticMaskRcnn, _stacked, greedy_suppression
from export.operators.refusals import refusals
from export.operators.tables import known_versions
from export.static_check import findings
from tests.bench.static_maskrcnn import ICE, Difference, bay, difference, learn, packed
from train.models.maskrcnn import LOGIT_LIMIT, InstanceMember, MaskRcnnOptions
from train.models.members import IMAGENET_MEAN, IMAGENET_STD, MemberFacts

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SIZE = (384, 640)
LEARNT_SIZE = (160, 224)
LEARNING_STEPS, LEARNING_RATE = 180, 2e-3
SMALL: dict[str, object] = {
    "width": 32,
    "box_width": 64,
    "boxes_learnt": 128,
    "proposals_training": [300, 200],
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def member_of(*, ice: int = 1, **options: object) -> InstanceMember:
    """A small one with random parameters; classes: 0 other, 1 water, the rest ice."""
    torch.manual_seed(0)
    facts = MemberFacts(
        architecture="maskrcnn",
        encoder="mobilenet_v3_small",
        options=parse(MaskRcnnOptions, SMALL | options, where="test"),
        classes=2 + ice,
        ice=tuple(range(ICE, ICE + ice)),
        water=(1,),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
    )
    return InstanceMember(facts).eval()


@pytest.fixture(scope="module")
def trained() -> InstanceMember:
    """Two ice classes, learnt from packed discs until hundreds are found."""
    member = member_of(ice=2)
    scenes = (
        packed(seed, LEARNT_SIZE, step=14 + seed % 3 * 8, radii=(3, 7 + seed % 3 * 4), ice=2)
        for seed in count(1000)
    )
    learn(member, scenes, until=lambda steps: steps >= LEARNING_STEPS, rate=LEARNING_RATE)
    return member


@pytest.fixture(scope="module")
def static(trained: InstanceMember) -> StaticMaskRcnn:
    return StaticMaskRcnn(trained, SIZE)


def require_alike(apart: Difference) -> None:
    assert apart.counts[0] == apart.counts[1]
    assert apart.box_px <= 1e-4
    assert apart.score <= 1e-4
    assert apart.mask <= 1e-3
    assert apart.logit <= 1e-3
    assert apart.unresolved == 0


def noise(*, level: float, spread: float) -> Tensor:
    drawn = torch.Generator().manual_seed(3)
    return (level + spread * torch.randn(1, 3, *SIZE, generator=drawn)).clamp(0, 255)


@pytest.mark.parametrize("ice", [1, 2])
def test_with_random_parameters_it_finds_what_torchvision_finds(ice: int):
    member = member_of(ice=ice)
    apart = difference(member, StaticMaskRcnn(member, SIZE), noise(level=128, spread=60))
    require_alike(apart)
    assert apart.counts == (500, 500)


@pytest.mark.parametrize("step", [14, 22, 40])
def test_on_packed_floes_it_finds_what_torchvision_finds(
    trained: InstanceMember, static: StaticMaskRcnn, step: int
):
    apart = difference(trained, static, packed(7, SIZE, step=step, radii=(3, step / 2), ice=2)[0])
    require_alike(apart)
    assert apart.counts[0] > {14: 450, 22: 250, 40: 80}[step]


def test_the_trained_member_tells_floes_of_both_classes(trained: InstanceMember):
    """Else the comparisons would show little."""
    frames, masks, _ = packed(7, SIZE, step=22, radii=(3, 11), ice=2)
    decided = trained.decide(frames)
    for ice in (ICE, ICE + 1):
        ours, truth = decided == ice, masks == ice
        assert float((ours & truth).sum() / (ours | truth).sum()) > 0.5


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_a_drawn_bay_it_finds_what_torchvision_finds(
    trained: InstanceMember, static: StaticMaskRcnn, seed: int
):
    apart = difference(trained, static, bay(seed, SIZE)[0])
    require_alike(apart)
    assert apart.counts[0] > 20


@pytest.mark.data
def test_on_real_floes_it_finds_what_torchvision_finds(
    trained: InstanceMember, static: StaticMaskRcnn, icecam_data: Path
):
    from PIL import Image

    from edge.engine import resize

    first, *_ = sorted((icecam_data / "agulhas_floes" / "images").glob("*.jpg"))
    with Image.open(first) as picture:
        pixels = np.asarray(picture.convert("RGB"))[..., ::-1]
    small = resize(np.ascontiguousarray(pixels), SIZE, max_anisotropy=np.inf)
    frames = torch.from_numpy(small).float().permute(2, 0, 1)[None]
    require_alike(difference(trained, static, frames))


def test_where_no_floe_is_every_place_is_empty_and_every_logit_at_its_limit(
    trained: InstanceMember, static: StaticMaskRcnn
):
    frames = noise(level=60, spread=10)
    with torch.inference_mode():
        found, unresolved = static.find(frames)
        logits = static(frames)
    assert found.scores.tolist() == [0.0] * 500
    assert unresolved == 0
    assert torch.allclose(logits, torch.full((1, 2, *SIZE), -LOGIT_LIMIT), atol=1e-3)
    require_alike(difference(trained, static, frames))


def test_its_places_are_of_fixed_size_best_first(static: StaticMaskRcnn):
    with torch.inference_mode():
        found, _ = static.find(packed(7, SIZE, step=40, ice=2)[0])
    assert found.boxes.shape == (500, 4)
    assert found.masks.shape == (500, 28, 28)
    assert torch.equal(found.scores, found.scores.sort(descending=True).values)
    assert float(found.scores[-1]) == 0
    assert set(found.labels[found.scores > 0].tolist()) == {ICE, ICE + 1}


def test_too_few_steps_are_counted_as_unresolved(trained: InstanceMember, static: StaticMaskRcnn):
    frames = packed(7, SIZE, ice=2)[0]
    hasty = StaticMaskRcnn(trained, SIZE, suppression_steps=1)
    with torch.inference_mode():
        (_, left), (_, done) = hasty.find(frames), static.find(frames)
    assert left > 0
    assert done == 0


def test_frames_with_fewer_anchors_than_proposals_work_too(trained: InstanceMember):
    """64x96 has 1152 on its finest level, 6 on its coarsest; 32x64 has 516 in all."""
    for size in ((64, 96), (32, 64)):
        frames = packed(3, size, ice=2)[0]
        apart = difference(trained, StaticMaskRcnn(trained, size), frames)
        require_alike(apart)
        assert apart.counts[0] > 3


def test_fewer_detections_are_as_many_as_asked_for():
    member = member_of(detections=40)
    frames = noise(level=128, spread=60)
    with torch.inference_mode():
        found, _ = StaticMaskRcnn(member, SIZE).find(frames)
        (expected,) = member.instances(frames)
    assert found.scores.shape == (40,)
    assert torch.allclose(found.boxes, expected.boxes, atol=1e-4)


def test_boxes_take_their_features_from_torchvision_s_level():
    """Around 112, 224 and 448 px, where the level changes, and at the frame's edges."""
    member = member_of()
    static = StaticMaskRcnn(member, (512, 640))
    drawn = torch.Generator().manual_seed(1)
    levels = [
        torch.rand(1, 8, 512 // cell, 640 // cell, generator=drawn) for cell in (4, 8, 16, 32)
    ]
    sides = [s + d for s in (112.0, 224.0, 448.0) for d in (-1.0, -0.01, 0.0, 0.01, 1.0)]
    corners = [(0.0, 0.0, s, s) for s in sides] + [(640 - s, 512 - s, 640.0, 512.0) for s in sides]
    boxes = torch.tensor([*corners, (3.0, 4.0, 3.2, 9.0), (600.5, 0.0, 640.0, 512.0)])
    for pool in (member.network.roi_heads.box_roi_pool, member.network.roi_heads.mask_roi_pool):
        named = {str(level): maps for level, maps in enumerate(levels)}
        expected = pool(named, [boxes], [(512, 640)])
        assert torch.allclose(static._pooled(pool, _stacked(levels), boxes), expected, atol=1e-6)


def row_of_boxes(number: int) -> Tensor:
    """Boxes of 10x10 px, each 2 px right of the one before: IoU 2/3 with the next, 3/7 after."""
    left = 2.0 * torch.arange(number)
    zero = torch.zeros(number)
    return torch.stack([left, zero, left + 10, zero + 10], dim=1)[None]


def test_of_a_chain_of_boxes_every_other_one_stays():
    """Nine, the best first: the third is kept because the second, which overlaps it, is not."""
    keep, unresolved = greedy_suppression(row_of_boxes(9), torch.ones(1, 9), threshold=0.5, steps=8)
    assert keep.tolist() == [[1, 0, 1, 0, 1, 0, 1, 0, 1]]
    assert unresolved == 0


@pytest.mark.parametrize("steps", range(1, 8))
def test_a_chain_longer_than_the_steps_is_unresolved(steps: int):
    """Each step settles one box more; of the rest all stay or none does, which the next turns."""
    keep, unresolved = greedy_suppression(
        row_of_boxes(9), torch.ones(1, 9), threshold=0.5, steps=steps
    )
    settled = [1, 0, 1, 0, 1, 0, 1, 0, 1][: steps + 1]
    assert keep[0].tolist() == settled + [1 - steps % 2] * (8 - steps)
    assert unresolved == 8 - steps


def test_what_is_not_valid_neither_stays_nor_pushes_out():
    valid = torch.tensor([[1.0, 0.0, 1.0, 1.0]])
    keep, unresolved = greedy_suppression(row_of_boxes(4), valid, threshold=0.5, steps=4)
    assert keep.tolist() == [[1, 0, 1, 0]]
    assert unresolved == 0


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
def test_groups_are_each_suppressed_as_torchvision_s_nms_does(threshold: float):
    """Crowded boxes in three groups, some without area."""
    drawn = torch.Generator().manual_seed(int(10 * threshold))
    low = torch.rand(3, 400, 2, generator=drawn) * 60
    boxes = torch.cat([low, low + torch.rand(3, 400, 2, generator=drawn) * 40], dim=2)
    boxes[:, ::50, 2:] = boxes[:, ::50, :2]
    keep, unresolved = greedy_suppression(
        boxes, torch.ones(3, 400), threshold=threshold, steps=SUPPRESSION_STEPS
    )
    worse_and_worse = torch.arange(400, 0, -1).float()
    assert unresolved == 0
    for group in range(3):
        expected = nms(boxes[group], worse_and_worse, threshold)
        assert keep[group].nonzero()[:, 0].tolist() == expected.sort().values.tolist()
        overlaps = box_iou(boxes[group], boxes[group]).triu(1) > threshold
        assert bool(overlaps.any())


@pytest.mark.parametrize("shape", [(2, 3, 64, 96), (1, 3, 96, 64), (3, 64, 96)])
def test_frames_of_another_shape_are_refused(shape: tuple[int, ...]):
    static = StaticMaskRcnn(member_of(), (64, 96))
    with pytest.raises(ConfigError, match=r"frames of .*; expected \[1, 3, 64, 96\]"):
        static(torch.zeros(shape))


def test_a_size_that_the_member_cannot_take_is_refused():
    with pytest.raises(ConfigError, match=r"100x96 .*; expected multiples of 32"):
        StaticMaskRcnn(member_of(), (100, 96))


def test_no_steps_are_refused():
    with pytest.raises(ConfigError, match="0 suppression steps; expected at least 1"):
        StaticMaskRcnn(member_of(), (64, 96), suppression_steps=0)


class Alone(nn.Module):
    """The member as the one graph has it: bytes first, bytes last."""

    def __init__(self, static: StaticMaskRcnn) -> None:
        super().__init__()
        self.static = static

    def forward(self, frame: Tensor) -> Tensor:
        logits = self.static(frame.float().permute(0, 3, 1, 2))
        return (torch.sigmoid(logits) * 255).round().clamp(0, 255).to(torch.uint8)


@pytest.fixture(scope="module")
def exported(static: StaticMaskRcnn) -> onnx.ModelProto:
    example = torch.zeros(1, *SIZE, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            Alone(static).eval(), (example,), dynamo=True, opset_version=20, verbose=False
        )
        assert program is not None
        return onnxslim.slim(program.model_proto)


def test_the_graph_keeps_the_rules_of_the_one_graph(exported: onnx.ModelProto):
    assert findings(exported) == []


@pytest.mark.parametrize("version", [one.name for one in known_versions()])
def test_every_tensorrt_version_takes_the_graph(exported: onnx.ModelProto, version: str):
    assert [one.describe() for one in refusals(exported, version)] == []


def test_the_graph_sorts_fewer_than_3840_at_a_time(exported: onnx.ModelProto):
    constants = {one.name: numpy_helper.to_array(one) for one in exported.graph.initializer}
    most = [
        int(constants[node.input[1]].max())
        for node in exported.graph.node
        if node.op_type == "TopK"
    ]
    assert sorted(most) == [180, 500, 720, 1000, 1000, 1000, 1000, 1000]


def test_the_graph_holds_no_large_constant_but_parameters_and_anchors(
    exported: onnx.ModelProto, static: StaticMaskRcnn
):
    """A triangle of 1000x1000 would be four megabytes of float."""
    known = [len(one) for name, one in static.named_buffers() if name.startswith("anchors")]
    known += [one.numel() for one in static.parameters()]
    large = [
        (one.name, list(one.dims))
        for one in exported.graph.initializer
        if int(np.prod(one.dims)) > 20_000
        and int(np.prod(one.dims)) not in {*known}
        and one.dims[-1] != 4
    ]
    assert large == []


def test_the_graph_calculates_with_floats_alone(exported: onnx.ModelProto):
    """Whole numbers are only gathered with, sliced, compared and cast."""
    whole = onnx.shape_inference.infer_shapes(exported, data_prop=True).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in whole.value_info}
    others = {
        node.op_type
        for node in whole.node
        for name in node.output
        if kinds.get(name) in {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
    }
    assert others <= {"TopK", "Gather", "Slice", "Squeeze", "Cast", "Split"}


def test_onnx_runtime_says_what_torch_says(exported: onnx.ModelProto, static: StaticMaskRcnn):
    """In bytes of probability, which rounding may part by one."""
    session = onnxruntime.InferenceSession(exported.SerializeToString())
    (name,) = (one.name for one in session.get_inputs())
    for frames in (packed(5, SIZE, step=22, ice=2)[0], noise(level=60, spread=10)):
        pixels = frames.round().to(torch.uint8).permute(0, 2, 3, 1)
        (ours,) = session.run(None, {name: pixels.numpy()})
        with torch.inference_mode():
            expected = Alone(static)(pixels).numpy()
        apart = np.abs(ours.astype(int) - expected)
        assert apart.max() <= 1
        assert np.mean(apart > 0) < 1e-3

"""Runs → bundle: one graph, checked against torch, with golden frames and held-out metrics."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxslim
import torch
from PIL import Image

from edge.contract.bundle import write_bundle
from edge.contract.errors import BundleError, ConfigError
from edge.contract.files import make_folder
from edge.contract.frames import SUFFIXES, decode_image
from edge.engine import Answer, resize
from edge.engine.certify import AGREEMENT_FLOOR, GoldenAnswer, judge, pack_answer
from edge.engine.ort import INPUT, OUTPUTS, OrtBackend
from export.graph import EnsembleGraph, with_static_pooling
from export.static_check import findings
from train.ensembles import common_input, require_alike
from train.models.architectures import ARCHITECTURES
from train.runs import Run, images_seen, load_member

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    import onnx

    from edge.contract.bundle import HeldOut, Manifest
    from edge.contract.frames import Pixels
    from train.data.dataset import Dataset

OPSET = 20
CHECKED_FRAMES = 24
GOLDEN_FRAMES = 4
FULL = "full"
ONNX_FILE = "ensemble.onnx"
MEASURED_HONESTLY = ("test", "cross-validation")


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What ``make`` did: the manifest, and how well ONNX Runtime agreed with torch.

    agreement: share of mask pixels alike over all frames; unseen: classes that no frame showed.
    """

    manifest: Manifest
    frames: int
    agreement: float
    unseen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """A run with the weight and the temperature that it has in the bundle."""

    run: Run
    weight: float
    temperature: float


def make(  # noqa: PLR0913 - each is named at the call
    runs: Sequence[Run],
    out: Path,
    *,
    frames: Sequence[Pixels],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    held_out: HeldOut | None = None,
    held_out_on: Dataset | None = None,
    bundle_id: str = "",
    serial: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Export runs as one bundle.

    frames: uint8 ``(h, w, 3)`` BGR of any size; torch and ONNX Runtime must agree on them, and the
    most telling become golden. weights, temperatures: one for each run, all alike and 1 where
    None. held_out: metrics that were measured elsewhere, such as by cross-validation; else
    held_out_on: measured on its test split, unless a run has seen images of it. Runs that see
    floes have no graph and are left out, and metrics of all runs together with them; the others'
    weights are scaled up. ``say`` is told.
    Raises ConfigError for runs that don't fit together, BundleError where a check fails: nothing
    is written then.
    """
    require_alike(runs)
    _require_roles(runs[0])
    members = _with_graph(_members(runs, weights, temperatures), say)
    make_folder(out.parent, what="the bundle's folder")
    if not frames:
        raise ConfigError("no frames to check with", expected="at least one picture")
    size = runs[0].input_size
    small = [resize(frame, size, max_anisotropy=np.inf) for frame in frames]
    say(f"building one graph of {len(members)} members at {size[0]}x{size[1]}")
    graph = _graph(members)
    onnx_bytes = _to_onnx(graph, size)
    say(f"comparing ONNX Runtime with torch on {len(small)} frames")
    answers = [_torch_answer(graph, frame) for frame in small]
    agreement = _require_agreement(onnx_bytes, small, answers)
    golden = _choose_golden(answers, len(runs[0].class_map))
    files = {ONNX_FILE: onnx_bytes}
    for position, chosen in enumerate(golden):
        files[f"golden/{position}.png"] = _png(small[chosen])
        files[f"golden/{position}.npz"] = pack_answer(answers[chosen])
    fields = _manifest_fields(members, len(golden), bundle_id or out.stem, serial)
    if held_out is not None and len(members) < len(runs):
        say("the metrics are of all members together: the bundle gets none")
    elif held_out is not None:
        fields["metrics"] = held_out.model_dump()
    elif held_out_on is not None and _is_new(held_out_on, runs, say):
        say("measuring the ensemble on held-out images")
        fields["metrics"] = _measure(fields, files, held_out_on).model_dump()
    manifest = write_bundle(out, fields, files)
    seen = {int(index) for chosen in golden for index in np.unique(answers[chosen].answer.mask)}
    unseen = tuple(n for index, n in enumerate(runs[0].class_map.names) if index not in seen)
    return Made(manifest=manifest, frames=len(small), agreement=agreement, unseen=unseen)


def read_metrics(path: Path, runs: Sequence[Run]) -> HeldOut:
    """Return the metrics of a file that ``train evaluate --json`` or a recipe wrote.

    Raises ConfigError where it holds several evaluations, was not measured on held-out images, or
    not with the classes of the runs.
    """
    from train.evaluate.record import read_evaluation  # noqa: PLC0415 - only where it is given

    found = read_evaluation(path)
    if found.split not in MEASURED_HONESTLY:
        raise ConfigError(
            f"{path}: {found.predictor} was measured on {found.dataset}/{found.split}",
            expected=f"{' or '.join(MEASURED_HONESTLY)}: images that no member has seen",
            then="Nothing was written.",
        )
    if found.class_map.signature != runs[0].class_map.signature:
        raise ConfigError(
            f"{path}: was measured with the classes {found.class_map.describe()}",
            expected=f"those of the runs: {runs[0].class_map.describe()}",
            then="Nothing was written.",
        )
    return found.held_out()


def _is_new(dataset: Dataset, runs: Sequence[Run], say: Callable[[str], None]) -> bool:
    """Return whether no run has seen an image of the dataset's test split; else ``say`` so."""
    names = {item.stem for item in dataset.of("test")}
    for run in runs:
        known = names & images_seen(run) if run.file.training.dataset == dataset.name else set()
        if known:
            say(
                f"run {run.name!r} has seen {len(known)} of the {len(names)} test images of "
                f"{dataset.name}: the bundle gets no metrics"
            )
            return False
    return True


def _members(
    runs: Sequence[Run], weights: Sequence[float] | None, temperatures: Sequence[float] | None
) -> list[_Member]:
    return [
        _Member(run=run, weight=weight, temperature=temperature)
        for run, weight, temperature in zip(
            runs, weights or [1.0] * len(runs), temperatures or [1.0] * len(runs), strict=True
        )
    ]


def _require_roles(run: Run) -> None:
    for role in ("ice", "water"):
        if not run.class_map.indices(role):
            raise ConfigError(
                f"run {run.name!r} has the classes {run.class_map.describe()}: none of the role "
                f"{role!r}",
                expected="runs that were trained on ice and water; this one is to start others",
                then="Nothing was written.",
            )


def _with_graph(members: Sequence[_Member], say: Callable[[str], None]) -> list[_Member]:
    """Leave out what sees floes, and let the others' weights sum to 1."""
    kept = [one for one in members if ARCHITECTURES[one.run.architecture].kind == "surfaces"]
    left_out = ", ".join(one.run.name for one in members if one not in kept)
    if not kept:
        raise ConfigError(
            f"nothing but members that see floes ({left_out}), which have no graph yet",
            expected="at least one other member",
            then="Nothing was written.",
        )
    if left_out:
        say(
            f"left out: {left_out} (members that see floes have no graph yet); the bundle's "
            f"ensemble is {', '.join(one.run.name for one in kept)}"
        )
    total = sum(one.weight for one in kept)
    return [replace(one, weight=one.weight / total) for one in kept]


def _graph(members: Sequence[_Member]) -> EnsembleGraph:
    graph = EnsembleGraph(
        [load_member(one.run) for one in members],
        weights=[one.weight for one in members],
        temperatures=[one.temperature for one in members],
    ).eval()
    height, width = members[0].run.input_size
    with_static_pooling(graph, torch.zeros(1, height, width, 3, dtype=torch.uint8))
    return graph


def _to_onnx(graph: EnsembleGraph, size: tuple[int, int]) -> bytes:
    example = torch.zeros(1, *size, 3, dtype=torch.uint8)
    with _quiet():
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
        if program is None:
            raise BundleError("torch gave no ONNX program")
        model: onnx.ModelProto = onnxslim.slim(program.model_proto)
    problems = findings(model)
    if problems:
        raise BundleError("the graph breaks rules of the bundle:\n  " + "\n  ".join(problems))
    return bytes(model.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's notes about its own insides from the user."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _torch_answer(graph: EnsembleGraph, frame: Pixels) -> GoldenAnswer:
    batch = torch.from_numpy(frame[np.newaxis])
    with torch.inference_mode():
        mask, confidence, members = graph(batch)
        best = graph.probabilities(batch)[0].topk(2, dim=1).values[0]
    return GoldenAnswer(
        answer=Answer(
            mask=mask[0].numpy(), confidence=confidence[0].numpy(), member_masks=members.numpy()
        ),
        margin=(best[0] - best[1]).numpy().astype(np.float16),
    )


def _require_agreement(
    onnx_bytes: bytes, frames: Sequence[Pixels], answers: Sequence[GoldenAnswer]
) -> float:
    backend = OrtBackend(onnx_bytes, where=ONNX_FILE)
    verdict = judge(
        (backend.run(frame), stored, 0.0) for frame, stored in zip(frames, answers, strict=True)
    )
    if not verdict.passed:
        raise BundleError(
            f"ONNX Runtime and torch: {verdict.describe()}",
            expected=f"at least {AGREEMENT_FLOOR:.1%} of each and no clear disagreement",
            then="Nothing was written.",
        )
    return verdict.agreement


def _choose_golden(answers: Sequence[GoldenAnswer], class_count: int) -> list[int]:
    """Pick frames so that every class is somewhere: each next one adds most to the rarest class."""
    shares = np.array(
        [np.bincount(a.answer.mask.ravel(), minlength=256)[:class_count] for a in answers], float
    )
    shares /= shares.sum(axis=1, keepdims=True)
    chosen: list[int] = []
    while len(chosen) < min(GOLDEN_FRAMES, len(answers)):
        rest = [index for index in range(len(answers)) if index not in chosen]
        together = shares[chosen].sum(axis=0)
        chosen.append(max(rest, key=lambda index: float(np.sqrt(together + shares[index]).sum())))
    return chosen


def _manifest_fields(
    members: Sequence[_Member], golden: int, bundle_id: str, serial: int | None
) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    runs = [one.run for one in members]
    (height, width), max_anisotropy = common_input(runs)
    return {
        "id": bundle_id,
        "serial": int(now.timestamp()) if serial is None else serial,
        "created_at": now,
        "min_icecam": "0.1.0",
        "class_map": runs[0].class_map.model_dump(),
        "input": {
            "height": height,
            "width": width,
            "max_anisotropy": max_anisotropy,
        },
        "graphs": [
            {
                "name": FULL,
                "file": ONNX_FILE,
                "precision": "float32",
                "members": [run.name for run in runs],
                "weights": [one.weight for one in members],
            }
        ],
        "members": [
            {
                "name": one.run.name,
                "architecture": one.run.architecture,
                "encoder": one.run.encoder,
                "parameters": one.run.file.parameters,
                "weight": one.weight,
                "temperature": one.temperature,
                "training": one.run.training_summary(),
            }
            for one in members
        ],
        "golden": [
            {"frame": f"golden/{position}.png", "answer": f"golden/{position}.npz"}
            for position in range(golden)
        ],
    }


def _measure(fields: dict[str, Any], files: dict[str, bytes], dataset: Dataset) -> HeldOut:
    from train.evaluate.evaluation import evaluate  # noqa: PLC0415 - only where a dataset is given
    from train.predict import open_predictor  # noqa: PLC0415 - the same

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "unmeasured.icecam"
        write_bundle(path, fields, files)
        with open_predictor(path) as predictor:
            return evaluate(predictor, dataset, split="test").held_out()


def _png(frame: Pixels) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(frame[:, :, ::-1])).save(file, format="PNG", optimize=True)
    return file.getvalue()


def choose_frames(dataset: Dataset | None, folder: Path | None) -> list[Pixels]:
    """Return up to CHECKED_FRAMES pictures, spread evenly over validation images or a folder.

    A dataset without validation images gives of all it has.

    Raises ConfigError where neither or both are given, or there is no picture; CameraError for one
    that cannot be read.
    """
    if dataset is not None and folder is None:
        paths = [item.image for item in dataset.of("validation") or dataset.of("all")]
        where = dataset.source
    elif folder is not None and dataset is None:
        where = folder
        paths = [path for path in sorted(folder.glob("*")) if path.suffix.lower() in SUFFIXES]
    else:
        raise ConfigError("no frames to check with", expected="either --data or --frames")
    if not paths:
        raise ConfigError(f"{where}: no pictures", expected="a folder of JPEG or PNG files")
    spread = np.linspace(0, len(paths) - 1, min(CHECKED_FRAMES, len(paths))).round().astype(int)
    chosen = [paths[index] for index in spread]
    return [decode_image(path.read_bytes(), where=str(path)) for path in chosen]

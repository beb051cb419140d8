"""Runs → bundle: one graph, checked against torch, with golden frames and held-out metrics."""

from __future__ import annotations

import io
import tempfile
import warnings
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
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
from train.runs import Run, load_member

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


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What ``make`` did: the manifest, and how well ONNX Runtime agreed with torch.

    agreement: share of mask pixels alike over all frames; unseen: classes that no frame showed.
    """

    manifest: Manifest
    frames: int
    agreement: float
    unseen: tuple[str, ...]


def make(  # noqa: PLR0913 - each is named at the call
    runs: Sequence[Run],
    out: Path,
    *,
    frames: Sequence[Pixels],
    held_out_on: Dataset | None = None,
    bundle_id: str = "",
    serial: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Export runs as one bundle.

    frames: uint8 ``(h, w, 3)`` BGR of any size; torch and ONNX Runtime must agree on them, and the
    most telling become golden. held_out_on: measured on its test split, into the manifest.
    Raises ConfigError for runs that don't fit together, BundleError where a check fails: nothing
    is written then.
    """
    _require_alike(runs)
    make_folder(out.parent, what="the bundle's folder")
    if not frames:
        raise ConfigError("no frames to check with", expected="at least one picture")
    size = runs[0].input_size
    small = [resize(frame, size, max_anisotropy=np.inf) for frame in frames]
    say(f"building one graph of {len(runs)} members at {size[0]}x{size[1]}")
    graph = _graph(runs)
    onnx_bytes = _to_onnx(graph, size)
    say(f"comparing ONNX Runtime with torch on {len(small)} frames")
    answers = [_torch_answer(graph, frame) for frame in small]
    agreement = _require_agreement(onnx_bytes, small, answers)
    golden = _choose_golden(answers, len(runs[0].class_map))
    files = {ONNX_FILE: onnx_bytes}
    for position, chosen in enumerate(golden):
        files[f"golden/{position}.png"] = _png(small[chosen])
        files[f"golden/{position}.npz"] = pack_answer(answers[chosen])
    fields = _manifest_fields(runs, len(golden), bundle_id or out.stem, serial)
    if held_out_on is not None:
        say("measuring the ensemble on held-out images")
        fields["metrics"] = _measure(fields, files, held_out_on).model_dump()
    manifest = write_bundle(out, fields, files)
    seen = {int(index) for chosen in golden for index in np.unique(answers[chosen].answer.mask)}
    unseen = tuple(n for index, n in enumerate(runs[0].class_map.names) if index not in seen)
    return Made(manifest=manifest, frames=len(small), agreement=agreement, unseen=unseen)


def _require_alike(runs: Sequence[Run]) -> None:
    first = runs[0]
    for position, run in enumerate(runs[1:], start=1):
        if run.name in {earlier.name for earlier in runs[:position]}:
            raise ConfigError(
                f"two runs are named {run.name!r}",
                expected="a name of its own for each member",
                then="Nothing was written.",
            )
        if run.class_map.signature != first.class_map.signature:
            raise ConfigError(
                f"class maps differ: run {first.name!r} has {first.class_map.describe()}; run "
                f"{run.name!r} has {run.class_map.describe()}",
                expected="the same names and roles in the same order",
                then="Nothing was written.",
            )
        if run.input_size != first.input_size:
            raise ConfigError(
                f"input sizes differ: run {first.name!r} {first.input_size}, run {run.name!r} "
                f"{run.input_size}",
                expected="one (height, width) for all members",
                then="Nothing was written.",
            )


def _graph(runs: Sequence[Run]) -> EnsembleGraph:
    members = [load_member(run) for run in runs]
    graph = EnsembleGraph(members, weights=_weights(runs), temperatures=[1.0] * len(members)).eval()
    height, width = runs[0].input_size
    with_static_pooling(graph, torch.zeros(1, height, width, 3, dtype=torch.uint8))
    return graph


def _weights(runs: Sequence[Run]) -> list[float]:
    """Return one ensemble weight per run: all the same."""
    return [1 / len(runs)] * len(runs)


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
    runs: Sequence[Run], golden: int, bundle_id: str, serial: int | None
) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    height, width = runs[0].input_size
    weights = _weights(runs)
    return {
        "id": bundle_id,
        "serial": int(now.timestamp()) if serial is None else serial,
        "created_at": now,
        "min_icecam": "0.1.0",
        "class_map": runs[0].class_map,
        "input": {
            "height": height,
            "width": width,
            "max_anisotropy": min(run.max_anisotropy for run in runs),
        },
        "graphs": [
            {
                "name": FULL,
                "file": ONNX_FILE,
                "precision": "float32",
                "members": [run.name for run in runs],
                "weights": weights,
            }
        ],
        "members": [
            {
                "name": run.name,
                "architecture": run.architecture,
                "encoder": run.encoder,
                "parameters": run.file.parameters,
                "weight": weight,
                "training": run.training_summary(),
            }
            for run, weight in zip(runs, weights, strict=True)
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

    Raises ConfigError where neither or both are given, or there is no picture; CameraError for one
    that cannot be read.
    """
    if dataset is not None and folder is None:
        paths = [item.image for item in dataset.of("validation")]
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

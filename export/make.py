"""Runs → bundle: one graph, checked against torch, with golden frames and held-out metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import numpy as np

from edge.contract.bundle import write_bundle
from edge.contract.errors import BundleError, ConfigError
from edge.contract.files import make_folder
from edge.engine import resize
from edge.engine.certify import SAME_ARITHMETIC, judge
from edge.engine.golden import pack_answer
from edge.engine.ort import OrtBackend
from export.answers import Networks, WeighedRun
from export.float16 import require_equal, to_float16
from export.frames import choose_golden, to_png
from export.metrics import is_new, measure
from export.to_onnx import to_onnx
from train.ensembles import common_input, require_alike
from train.models.architectures import ARCHITECTURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import onnx

    from edge.contract.bundle import HeldOut, Manifest
    from edge.contract.frames import Pixels, Size
    from edge.engine.certify import Verdict
    from edge.engine.golden import GoldenAnswer
    from train.data.dataset import Dataset
    from train.runs import Run

FULL, FALLBACK = "full", "fallback"
FILES = {FULL: "ensemble", FALLBACK: "fallback"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """What ``make`` did: the manifest, and how well others agreed with torch's float32.

    agreement: share of mask pixels of ONNX Runtime's alike over all frames; float16: how each
    ensemble's float16 graph did on the golden frames, none where they were left out; unresolved:
    suppressions that Mask R-CNN members left unresolved over all frames; unseen: classes that no
    golden frame shows.
    """

    manifest: Manifest
    frames: int
    agreement: float
    float16: dict[str, Verdict]
    unresolved: dict[str, int]
    unseen: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Tried:
    """Frames of the bundle's size, what each ensemble answers to them, and which are golden."""

    frames: list[Pixels]
    answers: list[dict[str, GoldenAnswer]]
    golden: list[int]

    def golden_frames(self) -> list[Pixels]:
        return [self.frames[position] for position in self.golden]

    def of(self, ensemble: str) -> list[GoldenAnswer]:
        return [each[ensemble] for each in self.answers]

    def golden_of(self, ensemble: str) -> list[GoldenAnswer]:
        return [self.answers[position][ensemble] for position in self.golden]


def make(  # noqa: PLR0913 - each is named at the call
    runs: Sequence[Run],
    out: Path,
    *,
    frames: Sequence[Pixels],
    weights: Sequence[float] | None = None,
    temperatures: Sequence[float] | None = None,
    without: Sequence[str] = (),
    float16: bool = True,
    held_out: HeldOut | None = None,
    held_out_on: Dataset | None = None,
    bundle_id: str = "",
    serial: int | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> Made:
    """Export runs as one bundle.

    frames: uint8 ``(h, w, 3)`` BGR of any size; torch and ONNX Runtime must agree on them, and the
    most telling become golden. weights, temperatures: one for each run, all alike and 1 where
    None. without: the members that the fallback does without; where none is named, those that see
    floes. float16: whether the graphs that TensorRT is to compile are added. held_out: metrics that
    were measured elsewhere, such as by cross-validation; else held_out_on: measured on its test
    split, unless a run has seen images of it. ``say`` is told.
    Raises ConfigError for runs that don't fit together, BundleError where a check fails: nothing
    is written then.
    """
    require_alike(runs)
    _require_roles(runs[0])
    ensembles = _ensembles(runs, weights, temperatures, without)
    make_folder(out.parent, what="the bundle's folder")
    if not frames:
        raise ConfigError("no frames to check with", expected="at least one picture")
    networks = Networks(runs)
    say(f"answering {len(frames)} frames in torch")
    tried = _try(networks, ensembles, frames)
    graphs = _graphs(networks, ensembles, tried, say, float16=float16)
    files = dict(_golden_files(tried)) | graphs.files
    fields = _manifest_fields(ensembles, files, tried, networks.unresolved)
    fields |= _identity(bundle_id or out.stem, serial)
    if held_out is not None:
        fields["metrics"] = held_out.model_dump()
    elif held_out_on is not None and is_new(held_out_on, runs, say):
        say("measuring the ensemble on held-out images")
        fields["metrics"] = measure(fields, files, held_out_on).model_dump()
    return Made(
        manifest=write_bundle(out, fields, files),
        frames=len(frames),
        agreement=graphs.agreement,
        float16=graphs.float16,
        unresolved=networks.unresolved,
        unseen=_unseen(tried, runs[0]),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Graphs:
    """ONNX files by their names in the bundle, and how they did (see ``Made``)."""

    files: dict[str, bytes]
    agreement: float
    float16: dict[str, Verdict]


def _graphs(
    networks: Networks,
    ensembles: Mapping[str, Sequence[WeighedRun]],
    tried: _Tried,
    say: Callable[[str], None],
    *,
    float16: bool,
) -> _Graphs:
    """Export each ensemble and hold it against torch. Raises BundleError where one differs.

    The full ensemble in float32, for ONNX Runtime; all of them in float16, for TensorRT, or else in
    float32 too.
    """
    files, agreements, verdicts = {}, {}, {}
    for name, ensemble in ensembles.items():
        say(f"building one graph of {len(ensemble)} members at {_by(networks.size)} ({name})")
        model = to_onnx(networks.graph(ensemble), networks.size)
        if name == FULL or not float16:
            files[_graph_file(name, "float32")] = model.SerializeToString()
            say(f"comparing ONNX Runtime with torch on {len(tried.frames)} frames")
            agreements[name] = _require_agreement(model, tried, name, networks)
        if float16:
            say("halving it: float16 on the golden frames")
            path = _graph_file(name, "float16")
            files[path], verdicts[name] = _halved(model, tried, name, networks, path)
    return _Graphs(files=files, agreement=agreements[FULL], float16=verdicts)


def _ensembles(
    runs: Sequence[Run],
    weights: Sequence[float] | None,
    temperatures: Sequence[float] | None,
    without: Sequence[str],
) -> dict[str, list[WeighedRun]]:
    """Return the full ensemble and, where some members are done without, the fallback."""
    equal = [1.0] * len(runs)
    full = [
        WeighedRun(run=run, weight=weight, temperature=temperature)
        for run, weight, temperature in zip(
            runs, weights or equal, temperatures or equal, strict=True
        )
    ]
    names = [run.name for run in runs]
    unknown = [name for name in without if name not in names]
    if unknown:
        raise ConfigError(
            f"--without {unknown[0]!r}: no such member", expected=f"one of {', '.join(names)}"
        )
    left_out = set(without) or {run.name for run in runs if _sees_floes(run)}
    rest = [one for one in full if one.run.name not in left_out]
    if without and not rest:
        raise ConfigError(
            "a fallback without any member", expected="at least one that is not left out"
        )
    ensembles = {FULL: full, FALLBACK: rest} if rest and left_out else {FULL: full}
    return {name: _to_one(ensemble) for name, ensemble in ensembles.items()}


def _to_one(ensemble: Sequence[WeighedRun]) -> list[WeighedRun]:
    """Let the weights sum to 1."""
    total = sum(one.weight for one in ensemble)
    return [replace(one, weight=one.weight / total) for one in ensemble]


def _sees_floes(run: Run) -> bool:
    return ARCHITECTURES[run.architecture].kind == "floes"


def _require_roles(run: Run) -> None:
    for role in ("ice", "water"):
        if not run.class_map.indices(role):
            raise ConfigError(
                f"run {run.name!r} has the classes {run.class_map.describe()}: none of the role "
                f"{role!r}",
                expected="runs that were trained on ice and water; this one is to start others",
                then="Nothing was written.",
            )


def _try(
    networks: Networks, ensembles: Mapping[str, Sequence[WeighedRun]], frames: Sequence[Pixels]
) -> _Tried:
    small = [resize(frame, networks.size, max_anisotropy=np.inf) for frame in frames]
    answers = [networks.answers(frame, ensembles) for frame in small]
    golden = choose_golden([each[FULL] for each in answers], len(networks.class_map))
    return _Tried(frames=small, answers=answers, golden=golden)


def _require_agreement(
    model: onnx.ModelProto, tried: _Tried, name: str, networks: Networks
) -> float:
    backend = OrtBackend(model.SerializeToString(), where=name)
    pairs = zip(tried.frames, tried.of(name), strict=True)
    verdict = judge(
        ((backend.run(frame), stored, 0.0) for frame, stored in pairs),
        networks.class_map,
        SAME_ARITHMETIC,
    )
    if not verdict.passed:
        raise BundleError(
            f"ONNX Runtime and torch differ on graph {name!r}: {'; '.join(verdict.shortfalls)}",
            then="Nothing was written.",
        )
    return verdict.mask_agreement


def _halved(
    model: onnx.ModelProto, tried: _Tried, name: str, networks: Networks, path: str
) -> tuple[bytes, Verdict]:
    half = to_float16(model, tried.frames)
    verdict = require_equal(
        half, tried.golden_frames(), tried.golden_of(name), networks.class_map, where=path
    )
    return half.SerializeToString(), verdict


def _golden_files(tried: _Tried) -> Iterator[tuple[str, bytes]]:
    for place, position in enumerate(tried.golden):
        yield f"golden/{place}.png", to_png(tried.frames[position])
        for ensemble, answer in tried.answers[position].items():
            yield _answer_file(place, ensemble), pack_answer(answer)


def _answer_file(place: int, ensemble: str) -> str:
    return f"golden/{place}.npz" if ensemble == FULL else f"golden/{place}-{ensemble}.npz"


def _manifest_fields(
    ensembles: Mapping[str, Sequence[WeighedRun]],
    files: Mapping[str, bytes],
    tried: _Tried,
    unresolved: Mapping[str, int],
) -> dict[str, Any]:
    full = ensembles[FULL]
    runs = [one.run for one in full]
    (height, width), max_anisotropy = common_input(runs)
    graphs = [
        _graph(name, ensemble, precision)
        for name, ensemble in ensembles.items()
        for precision in ("float32", "float16")
        if _graph_file(name, precision) in files
    ]
    others = [graph["name"] for graph in graphs if len(graph["members"]) < len(full)]
    return {
        "min_icecam": "0.1.0",
        "class_map": runs[0].class_map.model_dump(),
        "input": {"height": height, "width": width, "max_anisotropy": max_anisotropy},
        "graphs": graphs,
        "members": [_member(one, unresolved.get(one.run.name)) for one in full],
        "golden": [
            {
                "frame": f"golden/{place}.png",
                "answer": _answer_file(place, FULL),
                "answers": {name: _answer_file(place, FALLBACK) for name in others},
            }
            for place in range(len(tried.golden))
        ],
    }


def _graph(name: str, ensemble: Sequence[WeighedRun], precision: str) -> dict[str, Any]:
    return {
        "name": name if precision == "float32" else f"{name}-fp16",
        "file": _graph_file(name, precision),
        "precision": precision,
        "members": [one.run.name for one in ensemble],
        "weights": [one.weight for one in ensemble],
    }


def _graph_file(name: str, precision: str) -> str:
    return f"{FILES[name]}.onnx" if precision == "float32" else f"{FILES[name]}.fp16.onnx"


def _member(one: WeighedRun, unresolved: int | None) -> dict[str, Any]:
    return {
        "name": one.run.name,
        "architecture": one.run.architecture,
        "encoder": one.run.encoder,
        "parameters": one.run.file.parameters,
        "weight": one.weight,
        "temperature": one.temperature,
        "training": one.run.training_summary(),
        "unresolved": unresolved,
    }


def _identity(bundle_id: str, serial: int | None) -> dict[str, Any]:
    now = datetime.now(timezone.utc)
    return {
        "id": bundle_id,
        "serial": int(now.timestamp()) if serial is None else serial,
        "created_at": now,
    }


def _unseen(tried: _Tried, run: Run) -> tuple[str, ...]:
    seen = {int(index) for one in tried.golden_of(FULL) for index in np.unique(one.answer.mask)}
    return tuple(name for index, name in enumerate(run.class_map.names) if index not in seen)


def _by(size: Size) -> str:
    return f"{size[0]}x{size[1]}"

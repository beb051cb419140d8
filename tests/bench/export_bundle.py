"""What exporting a bundle of three members takes: time, memory, size, and what float16 costs.

    python -m tests.bench.export_bundle --members unet pspnet maskrcnn --json FILE

The members are trained here first, for a few epochs on drawn scenes: float16 is measured on
networks that have learnt to decide. Exporting is `python -m export make --frames`: torch, ONNX
Runtime and float16 on 6 frames, but no evaluation on held-out images. Bars: 90 s and 4 GiB, float16
at most 52 % of float32.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx
from rich.console import Console
from rich.table import Table

from edge.contract.bundle import open_bundle
from edge.contract.files import write_atomically
from edge.engine import graph_of
from edge.engine.golden import read_golden
from export.float16 import require_equal

if TYPE_CHECKING:
    from edge.contract.bundle import Bundle
    from edge.engine.certify import Verdict

SIZE = "384x640"
LEARNT_SIZE = "192x320"
MOST_S, MOST_MIB, MOST_SHARE = 90, 4096, 0.52
QUICK = {
    "unet": ["--epochs", "6"],
    "pspnet": ["--epochs", "6"],
    "deeplabv3plus": ["--epochs", "6"],
    "maskrcnn": ["--epochs", "3", "--batch", "2", "--lr", "0.001"],
}

_MEASURED = (
    "import runpy, sys\n"
    "from tests.bench.memory import peak_mb\n"
    "sys.argv = ['export', 'make', *sys.argv[1:]]\n"
    "try:\n"
    "    runpy.run_module('export', run_name='__main__')\n"
    "finally:\n"
    "    print('peak', peak_mb())\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """One export. share: float16's bytes of float32's; the rest with each result rounded."""

    members: tuple[str, ...]
    seconds: float
    peak_mib: float
    float32_bytes: int
    share: float
    mask_agreement: float
    coverage_difference: float
    unresolved: dict[str, int | None]

    @property
    def passed(self) -> bool:
        """Whether the bars hold."""
        within = self.seconds <= MOST_S and self.peak_mib <= MOST_MIB
        return within and self.share <= MOST_SHARE


def trained(folder: Path, member: str, scenes: int) -> Path:
    """Return a run trained on small drawn scenes whose frames are to be of ``SIZE``."""
    data, run = folder / "scenes", folder / member
    if not data.exists():
        _python("-m", "train", "synth", "-o", data, "--count", scenes, "--size", LEARNT_SIZE)
    fit = ["-m", "train", "fit", data, "--architecture", member, "--size", LEARNT_SIZE, "-o", run]
    _python(*fit, *QUICK[member])
    height, width = SIZE.split("x")
    text = (run / "run.toml").read_text(encoding="utf-8")
    text = text.replace("height = 192", f"height = {height}")
    (run / "run.toml").write_text(text.replace("width = 320", f"width = {width}"))
    return run


def export(folder: Path, runs: list[Path]) -> Exported:
    """Export runs as a user would, in a process of its own, and measure it."""
    out = folder / "-".join(run.name for run in runs)
    bundle_path = out.with_suffix(".icecam")
    began = time.perf_counter()
    options = ["--frames", str(folder / "scenes" / "images"), "-o", str(bundle_path)]
    command = [sys.executable, "-c", _MEASURED, *map(str, runs), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - began
    Console().print(done.stdout, markup=False)
    if done.returncode:
        sys.exit(done.returncode)
    bundle = open_bundle(bundle_path)
    sizes = {file.path: file.size for file in bundle.manifest.files}
    verdict = _rounded(bundle)
    return Exported(
        members=tuple(run.name for run in runs),
        seconds=seconds,
        peak_mib=float(done.stdout.rpartition("peak ")[2]),
        float32_bytes=sizes["ensemble.onnx"],
        share=sizes["ensemble.fp16.onnx"] / sizes["ensemble.onnx"],
        mask_agreement=verdict.mask_agreement,
        coverage_difference=verdict.coverage_difference,
        unresolved={one.name: one.unresolved for one in bundle.manifest.members},
    )


def _rounded(bundle: Bundle) -> Verdict:
    """Hold the float16 graph against the golden answers, as the gate of ``make`` does."""
    graph = graph_of(bundle, "full-fp16")
    cases = [read_golden(bundle, case, graph) for case in bundle.manifest.golden]
    return require_equal(
        onnx.load_from_string(bundle.read(graph.file)),
        [frame for frame, _ in cases],
        [answer for _, answer in cases],
        bundle.manifest.class_map,
        where=graph.file,
    )


def _python(*words: object) -> None:
    subprocess.run([sys.executable, *map(str, words)], check=True)


def _show(found: Exported) -> None:
    table = Table(title=", ".join(found.members), title_justify="left", show_header=False)
    table.add_row("time, bar 90 s", f"{found.seconds:.0f} s")
    table.add_row("memory, bar 4096 MiB", f"{found.peak_mib:.0f} MiB")
    table.add_row("float32", f"{found.float32_bytes / 1e6:.1f} MB")
    table.add_row("float16, bar 52 %", f"{found.share:.1%}")
    table.add_row("float16: mask alike", f"{found.mask_agreement:.3%}")
    table.add_row("float16: ice fraction within", f"{found.coverage_difference:.4f}")
    table.add_row("overlaps unresolved", str(found.unresolved))
    Console().print(table)


def main() -> None:
    """Train, export, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--members", nargs="+", default=["unet", "pspnet", "maskrcnn"])
    parser.add_argument("--scenes", type=int, default=160)
    parser.add_argument("--keep", type=Path, help="a folder for runs and bundle, used again")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        runs = [
            folder / member
            if (folder / member / "run.toml").exists()
            else trained(folder, member, arguments.scenes)
            for member in arguments.members
        ]
        found = export(folder, runs)
    _show(found)
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(asdict(found), indent=1).encode())
    sys.exit(not found.passed)


if __name__ == "__main__":
    main()

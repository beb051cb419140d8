from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.bench.training import Bench, report

ROOT = Path(__file__).parents[2]
SMALL = Bench(
    encoder="tu-test_resnet",
    size=(64, 128),
    batch_size=2,
    batches=1,
    repeats=1,
    counts=(2, 4),
    cpu_time=True,
)


@pytest.mark.slow
def test_the_benchmark_runs_and_says_where_its_datasets_do_not_fill_the_cache(
    capsys: pytest.CaptureFixture[str],
):
    figures = report(SMALL)
    printed = capsys.readouterr().out
    for name in ("fit", "bare", "network", "loader", "streamed"):
        assert figures[name] > 0
    assert figures["streamed"] < figures["loader"]
    assert len(figures["peaks_mb"]) == 2
    assert not figures["passed"]
    assert "both DO NOT FILL the cache, which holds 8192 images of each split" in printed


def test_a_view_takes_as_many_bytes_in_the_cache_as_are_counted(tmp_path: Path):
    from tests.train.copies import write_copies
    from train.data.dataset import read_dataset
    from train.data.loader import Resized

    dataset = read_dataset(write_copies(tmp_path / "copies", 1))
    view = Resized(dataset, dataset.of("all"), SMALL.size).read(0)
    assert SMALL.cached * sum(part.nbytes for part in view) == 256 << 20


def test_a_peak_is_of_the_process_alone_not_of_what_started_it():
    """This one holds 300 MB more than the child, which holds 100 MB for a moment."""
    held = np.ones(300 << 20, np.uint8)
    child = "from tests.bench.memory import peak_mb\nbytes(b'1' * (100 << 20))\nprint(peak_mb())"
    done = subprocess.run(
        [sys.executable, "-c", child], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert held.all()
    assert 100 < float(done.stdout) < 200

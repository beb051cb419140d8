"""Fits done one after the other, or several side by side in processes of their own."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING

from edge.contract.errors import ConfigError
from train.fit.plan import Hardware, digest
from train.runs import RUN, read_run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from train.recipe.steps import Fit
    from train.runs import Run


def do_fits(
    fits: Sequence[Fit],
    *,
    jobs: int,
    hardware: Hardware,
    console: Console,
    done: Callable[[Fit, Run, float], None],
) -> None:
    """Do the fits that are not finished yet; ``done`` is called with each run and its seconds.

    jobs: how many at once; their threads, and with them the last digits of what they learn, depend
    on it. Raises the first fit's error; those beside it are ended, and go on
    after their last whole epoch when the recipe is run again.
    """
    waiting = []
    for fit in fits:
        if (fit.out / RUN).exists():
            done(fit, _finished(fit), 0.0)
        else:
            waiting.append(fit)
    if jobs == 1:
        for fit in waiting:
            console.print(f"[bold]{fit.label}[/bold]")
            done(fit, *_do(fit, hardware, console))
        return
    for fit, run, seconds in _side_by_side(waiting, jobs, hardware):
        done(fit, run, seconds)


def _side_by_side(
    fits: Sequence[Fit], jobs: int, hardware: Hardware
) -> Iterator[tuple[Fit, Run, float]]:
    threads = max(1, (os.cpu_count() or 1) // jobs)
    pool = ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_begin_process,
        initargs=(threads,),
    )
    try:
        doing = {pool.submit(_do, fit, hardware): fit for fit in fits}
        for finished in as_completed(doing):
            yield doing[finished], *finished.result()
    except BrokenProcessPool:
        raise ConfigError(
            "a fit's process was killed (out of memory?)",
            then="Run the recipe again: it goes on after the last whole epochs.",
        ) from None
    finally:
        for process in list((pool._processes or {}).values()):  # noqa: SLF001 - no public way to end running work
            process.kill()
        pool.shutdown(cancel_futures=True)


def _begin_process(threads: int) -> None:
    """Share the cores, and end with the parent, even if that is killed."""
    import torch  # noqa: PLC0415 - only in the process that trains

    torch.set_num_threads(threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _do(fit: Fit, hardware: Hardware, console: Console | None = None) -> tuple[Run, float]:
    from train.fit.trainer import fit as fit_member  # noqa: PLC0415 - loads torch and Lightning

    began = time.monotonic()
    run = fit_member(
        fit.source.open(),
        fit.choice,
        fit.settings,
        out=fit.out,
        name=fit.name,
        start=fit.start,
        hardware=hardware,
        console=console,
    )
    return run, time.monotonic() - began


def _finished(fit: Fit) -> Run:
    run = read_run(fit.out)
    dataset = fit.source.open()
    if run.file.training.data != digest(dataset):
        raise ConfigError(
            f"{fit.out}: was trained on other images than {dataset.source} holds now",
            expected="the same images, classes and splits",
            then="Nothing was changed; name a new --out folder.",
        )
    return run

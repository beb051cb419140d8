"""Make what the TensorRT tests stand on: ``python -m tests.doubles.prepare``, or ``make doubles``.

Builds into ``build/doubles``: real pycuda, the libcuda double it runs on, and the real Python
bindings of several TensorRT releases over stand-ins for their libraries. What is there already is
left alone; a folder appears only once it is complete. Nothing is installed anywhere else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.doubles import places

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CUDA_HEADERS = ("nvidia-cuda-runtime==13.0.*", "nvidia-cuda-profiler-api==13.0.*")
"""Installed where neither a toolkit nor the packages beside torch have them."""

COMPILE = ("cc", "-std=gnu11", "-O1", "-shared", "-fPIC", "-pthread", "-Wall", "-Wextra", "-Werror")
SONAMES = ("libnvinfer.so", "libnvinfer_plugin.so", "libnvonnxparser.so")
MAJORS = (10, 11)
LOG_LINES = 15
UNFINISHED = "unfinished-"


class PreparationError(Exception):
    """What stopped the preparation, and what to do about it."""


def main() -> int:
    """Prepare everything that is missing; return the exit status."""
    places.BUILD.mkdir(parents=True, exist_ok=True)
    with (places.BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not places.missing():
            return 0
        began = time.monotonic()
        try:
            prepare()
        except PreparationError as error:
            print(f"The doubles are not ready: {error}", file=sys.stderr)
            return 1
    print(f"doubles ready in {places.BUILD} after {time.monotonic() - began:.0f} s")
    return 0


def prepare() -> None:
    """Make each folder that is missing, in the order in which they need each other."""
    outdated = set(places.BUILD.glob("lib*-*")) - {places.LIBCUDA, places.NVINFER}
    for left_behind in (*places.BUILD.rglob(f"{UNFINISHED}*"), *outdated):
        shutil.rmtree(left_behind)
    _require_compilers()
    _make(places.NVINFER, "stand-ins for TensorRT's libraries", _build_nvinfer)
    for binding in places.BINDINGS:
        if binding.available:
            what = f"{binding.package} {binding.version}"
            _make(binding.folder, what, lambda to, one=binding: _install_binding(one, to))  # type: ignore[misc]
    _make(places.PYCUDA, f"pycuda {places.PYCUDA_VERSION} from source, 2 minutes", _build_pycuda)
    _make(places.LIBCUDA, "the libcuda double", _build_libcuda)


def _make(folder: Path, what: str, build: Callable[[Path], None]) -> None:
    """Let ``build`` fill a new folder, and move it into place once it is whole."""
    if folder.is_dir():
        return
    print(f"preparing {what} …", flush=True)
    began = time.monotonic()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(folder.parent) as work:
        made = work / "made"
        made.mkdir()
        build(made)
        made.rename(folder)
    print(f"  {folder.relative_to(places.REPOSITORY)} after {time.monotonic() - began:.1f} s")


@contextlib.contextmanager
def _temporary(parent: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=parent) as folder:
        yield Path(folder)


def _require_compilers() -> None:
    missing = [name for name in ("cc", "c++", "nm") if shutil.which(name) is None]
    if missing:
        raise PreparationError(f"no {', '.join(missing)} on PATH. Install g++ and binutils.")
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not header.is_file():
        raise PreparationError(f"no {header}. Install this Python's headers (python3-dev).")


def _run(*command: str | Path, then: str, **more: str) -> str:
    """Run a program and return what it printed, or say which one failed, how, and what to do."""
    ended = subprocess.run(
        command,
        env={**os.environ, **more},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if ended.returncode != 0:
        last = "\n".join(ended.stdout.splitlines()[-LOG_LINES:])
        said = " ".join(map(str, command))
        raise PreparationError(f"status {ended.returncode} of: {said}\n{last}\n{then}")
    return ended.stdout


def _pip(*arguments: str | Path, **more: str) -> None:
    then = "Packages are fetched once: this needs the network. Then run `make doubles` again."
    _run(sys.executable, "-m", "pip", "--no-input", *arguments, then=then, **more)


def _compile(to: Path, *sources: Path, soname: str, include: Path | None = None) -> None:
    where = [f"-I{include}"] if include else []
    options = [*COMPILE, "-Wno-deprecated-declarations", *where, f"-Wl,-soname,{soname}"]
    _run(*options, "-o", to, *sources, then="The C compiler refused a double: mend it.")


def _build_nvinfer(to: Path) -> None:
    for major in MAJORS:
        for name in SONAMES:
            soname = f"{name}.{major}"
            _compile(to / soname, places.NVINFER_SOURCE, soname=soname)


def _install_binding(binding: places.Binding, to: Path) -> None:
    wanted = f"{binding.package}=={binding.version}"
    _pip("install", "--no-deps", "--only-binary=:all:", "--target", to, wanted)


def _cuda_headers() -> Path:
    """The folder of cuda.h: a toolkit's, or that of the packages beside torch, or fetched."""
    nvcc = shutil.which("nvcc")
    roots = [os.environ.get("CUDA_HOME"), nvcc and Path(nvcc).resolve().parents[1]]
    folders = [Path(root) / "include" for root in (*roots, "/usr/local/cuda") if root]
    fetched = places.BUILD / "cuda-headers"
    folders += Path(sysconfig.get_path("purelib")).glob("nvidia/*/include")
    folders += fetched.glob("nvidia/*/include")
    for folder in folders:
        if (folder / "cuda.h").is_file() and (folder / "cudaProfiler.h").is_file():
            return folder
    if fetched.exists():
        raise PreparationError(
            f"{fetched} holds no cuda.h. Remove it and run `make doubles` again."
        )
    _make(fetched, "CUDA's headers", _fetch_headers)
    return _cuda_headers()


def _fetch_headers(to: Path) -> None:
    _pip("install", "--no-deps", "--only-binary=:all:", "--target", to, *CUDA_HEADERS)


def _build_pycuda(to: Path) -> None:
    """Compile pycuda against the headers and a bare libcuda: its symbols are bound at run time."""
    headers = _cuda_headers()
    with _temporary(places.BUILD) as work:
        driver = work / "libcuda.so"
        _compile(driver, *_driver_sources(), soname="libcuda.so.1", include=headers)
        source = _fetch_pycuda(work)
        (source / "siteconf.py").write_text(
            f"CUDA_INC_DIR = [{str(headers)!r}]\n"
            f"CUDADRV_LIB_DIR = [{str(work)!r}]\n"
            "CUDA_ENABLE_CURAND = False\n",
            encoding="utf-8",
        )
        # No cache: a wheel compiled for speed of compiling must not be found by another project.
        _pip("install", "--no-cache-dir", "--target", to, source, CFLAGS="-O0 -g0 -w")


def _fetch_pycuda(to: Path) -> Path:
    name = f"pycuda-{places.PYCUDA_VERSION}"
    wanted = f"pycuda=={places.PYCUDA_VERSION}"
    _pip("download", "--no-deps", "--no-binary", "pycuda", "--dest", to, wanted)
    with tarfile.open(to / f"{name}.tar.gz") as archive:
        archive.extractall(to, filter="data")
    return to / name


def _build_libcuda(to: Path) -> None:
    """Compile the double, with a stub for each symbol of pycuda's that it does not have."""
    headers = _cuda_headers()
    library = to / "libcuda.so.1"
    _compile(library, *_driver_sources(), soname=library.name, include=headers)
    (extension,) = places.PYCUDA.glob("pycuda/_driver*.so")
    needed = {name for name in _symbols(extension, "--undefined-only") if name.startswith("cu")}
    absent = sorted(needed - _symbols(library, "--defined-only"))
    stubs = to / "stubs.c"
    stubs.write_text(
        "".join(f"int {name}(void);\nint {name}(void) {{ return 801; }}\n" for name in absent),
        encoding="utf-8",
    )
    _compile(library, *_driver_sources(), stubs, soname=library.name, include=headers)


def _driver_sources() -> list[Path]:
    return [path for path in places.LIBCUDA_SOURCES if path.suffix == ".c"]


def _symbols(library: Path, which: str) -> set[str]:
    listed = _run("nm", "-D", "--format=posix", which, library, then="binutils' nm failed.")
    return {line.split()[0].partition("@")[0] for line in listed.splitlines() if line}


if __name__ == "__main__":
    sys.exit(main())

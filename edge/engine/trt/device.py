"""TensorRT and the GPU of this machine, found or refused by name."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge.contract.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

log = logging.getLogger(__name__)

NVIDIA_RELEASE = Path("/etc/nv_tegra_release")
_OLD_JETPACK = 35
_JETPACK_6_0 = "36.3"
_KEPT_LINES = 20
_NO_MEMORY = ("outofmemory", "out of memory", "bad_alloc", "cudaerrormemoryallocation")

_NEEDED = (
    "ICudaEngine.device_memory_size_v2",
    "IExecutionContext.execute_async_v3",
    "IProgressMonitor.step_complete",
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED",
)
"""What TensorRT has from 10.3 on; the versions before lack the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Device:
    """What an engine is tied to. l4t: Jetson's Linux, such as 36.4.3, or nothing elsewhere.

    integrated: whether GPU and CPU share their memory.
    """

    tensorrt: str
    name: str
    compute_capability: str
    l4t: str
    integrated: bool
    memory_bytes: int

    def describe(self) -> str:
        """Return the device in a few words."""
        linux = f", L4T {self.l4t}" if self.l4t else ""
        return f"TensorRT {self.tensorrt}, {self.name} (compute {self.compute_capability}{linux})"


def find_device() -> Device:
    """Ask TensorRT and the driver. Raises EngineError, saying what to install and how."""
    trt = load_tensorrt()
    cuda = load_cuda()
    device = cuda.Device(0)
    return Device(
        tensorrt=trt.__version__,
        name=device.name(),
        compute_capability=".".join(map(str, device.compute_capability())),
        l4t=l4t(),
        integrated=bool(device.get_attribute(cuda.device_attribute.INTEGRATED)),
        memory_bytes=device.total_memory(),
    )


def load_tensorrt() -> ModuleType:
    """Return TensorRT's Python module. Raises EngineError where it is absent or too old."""
    try:
        import tensorrt  # noqa: PLC0415 - the one place that loads it, and only on use
    except ImportError as problem:
        raise EngineError(
            f"no TensorRT for this Python ({problem})", expected=_where_from(l4t())
        ) from None
    lacking = [name for name in _NEEDED if not _has(tensorrt, name)]
    if lacking:
        raise EngineError(
            f"TensorRT {tensorrt.__version__} lacks {', '.join(lacking)}",
            expected=f"TensorRT 10.3 or later; {_where_from(l4t())}",
        )
    return tensorrt  # type: ignore[no-any-return]


def load_cuda() -> ModuleType:
    """Return pycuda's driver module, initialised. Raises EngineError: no pycuda, no driver, no GPU.

    Importing it is what needs libcuda, so that it is imported on use alone.
    """
    try:
        import pycuda.driver as cuda  # noqa: PLC0415 - the one place that loads it, and only on use
    except ImportError as problem:
        raise EngineError(
            f"no pycuda, or no CUDA driver for it ({problem})",
            expected="a machine with an NVIDIA GPU and its driver, and pip install "
            "'icecam[jetson]' there (icecam[tensorrt] on a workstation)",
        ) from None
    try:
        cuda.init()
        count = cuda.Device.count()
    except cuda.Error as problem:
        raise EngineError(
            f"the CUDA driver does not start ({problem})", expected="an NVIDIA GPU that works"
        ) from None
    if not count:
        raise EngineError("the CUDA driver finds no GPU", expected="one NVIDIA GPU")
    return cuda  # type: ignore[no-any-return]


def l4t(release: Path = NVIDIA_RELEASE) -> str:
    """Return the version of Jetson's Linux, such as 36.4.3, or nothing on another machine."""
    try:
        text = release.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", text)
    return f"{found[1]}.{found[2]}" if found else ""


def listening_logger(trt: ModuleType) -> Any:  # noqa: ANN401 - a class made from TensorRT's own
    """Return a TensorRT logger that keeps its last errors and warnings in ``said``."""

    class Logger(trt.ILogger):  # type: ignore[misc, name-defined]
        """Keeps what explains a failure; the rest goes to the debug log."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.said: list[str] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - TensorRT's enum
            """Take a line from TensorRT, from whichever thread."""
            log.debug("TensorRT: %s", message)
            if severity in {trt.ILogger.INTERNAL_ERROR, trt.ILogger.ERROR, trt.ILogger.WARNING}:
                self.said = [*self.said, message][-_KEPT_LINES:]

    return Logger()


def require_plugins(trt: ModuleType, logger: Any) -> None:  # noqa: ANN401 - TensorRT's own
    """Register TensorRT's plugins (RoiAlign is one), before anything is parsed or loaded."""
    if not trt.init_libnvinfer_plugins(logger, ""):
        raise EngineError("TensorRT's plugins cannot be loaded", expected="a whole installation")


def because(logger: Any) -> str:  # noqa: ANN401 - TensorRT's own
    """Return what TensorRT last said, for a message."""
    return " (" + "; ".join(logger.said[-3:]) + ")" if logger.said else ""


def out_of_memory(logger: Any) -> bool:  # noqa: ANN401 - TensorRT's own
    """Return whether TensorRT said that memory ran out."""
    said = " ".join(logger.said).lower()
    return any(words in said for words in _NO_MEMORY)


def checked(call: Callable[..., bool], *arguments: object, **named: object) -> None:
    """Make a call of TensorRT that tells success by a bool. Raises EngineError where it is False.

    TensorRT raises nothing then: what lies in the output is that of the frame before.
    """
    if not call(*arguments, **named):
        raise EngineError(f"TensorRT: {call.__name__} failed")


def _has(module: ModuleType, path: str) -> bool:
    found: object = module
    for name in path.split("."):
        if not hasattr(found, name):
            return False
        found = getattr(found, name)
    return True


def _where_from(release: str) -> str:
    if not release:
        return (
            "pip install 'icecam[tensorrt]' on a workstation with an NVIDIA GPU; on a Jetson, "
            "JetPack 6.1 or later"
        )
    if int(release.partition(".")[0]) <= _OLD_JETPACK:
        return (
            f"JetPack 6.1 or later: this Jetson has L4T {release} (JetPack 5, TensorRT 8, Python "
            "3.8)"
        )
    if release.startswith(_JETPACK_6_0):
        return f"JetPack 6.1 or later: this Jetson has L4T {release} (JetPack 6.0, TensorRT 8.6)"
    return (
        "JetPack's own: sudo apt install nvidia-jetpack, and a venv made with "
        "--system-site-packages"
    )

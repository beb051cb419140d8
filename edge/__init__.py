"""icecam on the station: frames in, ice masks and coverage out."""

import sys

if sys.version_info < (3, 10):  # noqa: UP036 - a checkout can be started by any Python
    raise ImportError(
        f"icecam needs Python 3.10 or later, this is {sys.version_info[0]}.{sys.version_info[1]}. "
        "On a Jetson that is JetPack 6.1 or later: JetPack 5 has Python 3.8 and TensorRT 8."
    )

__version__ = "0.1.0"

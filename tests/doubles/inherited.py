"""Doubles for the children of the test's own process, which itself imports none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.doubles import places

if TYPE_CHECKING:
    import pytest


class InheritedDoubles:
    """Children that are started from now on find the doubles; this process finds TensorRT's name.

    ``ask`` sets the faults of those that are started after it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *faults: str, version: str = "") -> None:
        """Fail where the doubles are not prepared; everything is undone with monkeypatch."""
        missing = ", ".join(path.name for path in places.missing())
        assert not missing, f"not prepared: {missing}. Run `make doubles`, then the tests."
        self._monkeypatch = monkeypatch
        monkeypatch.syspath_prepend(places.MODULES)  # for importlib.util.find_spec alone
        for name, folders in places.search_paths().items():
            monkeypatch.setenv(name, folders)
        self.ask(*faults, version=version)

    def ask(self, *faults: str, version: str = "") -> None:
        """Have the doubles fail in these ways, or in none; stand in for this TensorRT."""
        self._monkeypatch.setenv("ICECAM_TRT_DOUBLE", ",".join(faults))
        self._monkeypatch.setenv("ICECAM_TRT_DOUBLE_VERSION", version)

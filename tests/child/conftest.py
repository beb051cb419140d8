"""The tiny modules that children are started from."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.child.tiny import DEAF, TINY

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(autouse=True)
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of tiny modules that children can be started from."""
    (tmp_path / "tiny_child.py").write_text(TINY, encoding="utf-8")
    (tmp_path / "deaf_child.py").write_text(DEAF, encoding="utf-8")
    (tmp_path / "broken_child.py").write_text("import nothing_of_this_name", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path

"""What tests of the station's ladder share."""

from __future__ import annotations

from tests.engine.ladders import compiled, demo, double, engines, whole  # noqa: F401 - fixtures

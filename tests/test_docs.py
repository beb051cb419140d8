"""What the documents show works."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from pydantic import BaseModel

from edge.config import StationConfig, read_config
from edge.contract.boundary import read_toml

if TYPE_CHECKING:
    from collections.abc import Iterator

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_station_toml_of_the_operations_page_loads(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "station.toml"
    path.write_text(text)
    config = read_config(path)
    assert config.station.id == "salluit-01"
    assert config.cameras[0].schedule.every_s == 1800


def test_the_station_toml_of_the_operations_page_holds_every_key(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "station.toml"
    path.write_text(text)

    def unset(section: BaseModel, where: str) -> Iterator[str]:
        yield from (
            f"{where}{key}" for key in type(section).model_fields.keys() - section.model_fields_set
        )
        for key, value in section:
            for one in value if isinstance(value, tuple) else [value]:
                if isinstance(one, BaseModel):
                    yield from unset(one, f"{where}{key}.")

    config = StationConfig.model_validate(read_toml(path, what="the page's station.toml"))
    assert list(unset(config, "")) == []


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_opens_with_a_sentence_a_picture_and_two_commands() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    opening = text.partition("\n## ")[0]
    _, sentence, picture, commands = (part for part in opening.split("\n\n") if part.strip())
    assert sentence.rstrip().endswith(".")
    assert sentence.count(". ") == 0
    assert picture.startswith("![")
    assert re.findall(r"^    (make \w+)", commands, flags=re.MULTILINE) == [
        "make demo",
        "make test",
    ]


def test_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?<!export )\bmake ([a-z-]+)", text)) <= targets


SMALL = {
    "synth": ["--count", "24", "--size", "96x160", "--sequence", "2"],
    "fit": ["--epochs", "1", "--size", "64x96"],
    "evaluate": [],
    "ensemble": [],
    "make": ["--float32-only"],  # networks of one epoch decide by a hair: float16 decides otherwise
}
"""What makes each command of the README quick; the last of two equal options counts."""


@pytest.mark.slow
def test_the_readmes_way_to_a_bundle_leads_to_a_bundle(tmp_path: Path) -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    section = text.partition("## A bundle of your own")[2].partition("\n## ")[0]
    lines = re.findall(r"^    \.venv/bin/python (.+?)(?:  +#.*)?$", section, flags=re.MULTILINE)
    assert [line.split()[2] for line in lines] == [
        "synth",
        "fit",
        "fit",
        "evaluate",
        "ensemble",
        "make",
    ]
    for line in lines:
        words = shlex.split(line)
        done = subprocess.run(
            [sys.executable, *words, *SMALL[words[2]]],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.icecam").exists()

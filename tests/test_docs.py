"""What the documents show works."""

from __future__ import annotations

import re
from pathlib import Path

from edge.config import read_config

REPOSITORY = Path(__file__).resolve().parents[1]


def test_the_station_toml_of_the_operations_page_loads(tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"```toml\n(.*?)```", page, flags=re.DOTALL)
    path = tmp_path / "station.toml"
    path.write_text(text)
    config = read_config(path)
    assert config.station.id == "salluit-01"
    assert config.cameras[0].schedule.every_s == 1800


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [REPOSITORY / "README.md", *(REPOSITORY / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_opens_with_a_sentence_a_picture_and_two_commands() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    opening = text.partition("\n## ")[0]
    _, sentence, picture, commands = [part for part in opening.split("\n\n") if part.strip()][:4]
    assert sentence.rstrip().endswith(".")
    assert sentence.count(". ") == 0
    assert picture.startswith("![")
    assert re.findall(r"^    (make \w+)", commands, flags=re.MULTILINE) == ["make demo", "make test"]


def test_commands_of_the_readme_are_targets_of_the_makefile() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)", text)) <= targets

"""docs/protocol.md and the tests name the same rules; rules on payloads that need no broker."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
PROTOCOL = TESTS.parent / "docs" / "protocol.md"


def ids_in_text(text: str) -> set[str]:
    return set(re.findall(r"^- \*\*([a-z]+-\d+)\*\* ", text, flags=re.MULTILINE))


def ids_in_tests(source: str) -> set[str]:
    """Return the ids that test functions carry as pytest.mark.protocol."""
    return {
        decorator.args[0].value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        for decorator in node.decorator_list
        if isinstance(decorator, ast.Call)
        and ast.unparse(decorator.func) == "pytest.mark.protocol"
        and isinstance(decorator.args[0], ast.Constant)
        and isinstance(decorator.args[0].value, str)
    }


def test_every_rule_has_a_test_and_every_test_a_rule() -> None:
    written = ids_in_text(PROTOCOL.read_text(encoding="utf-8"))
    carried = set().union(*(ids_in_tests(p.read_text("utf-8")) for p in TESTS.rglob("test_*.py")))
    assert written
    assert carried == written


def test_every_must_stands_in_a_rule_with_an_id() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    rules = re.findall(r"^- \*\*[a-z]+-\d+\*\* .*?(?=\n- |\n\n|\Z)", text, re.MULTILINE | re.DOTALL)
    assert text.count("MUST") == sum(rule.count("MUST") for rule in rules)
    assert all("MUST" in rule for rule in rules)


def test_a_missing_id_would_be_noticed() -> None:
    source = '@pytest.mark.protocol("seq-1")\ndef test_x() -> None: ...\n'
    assert ids_in_tests(source) == {"seq-1"}
    assert ids_in_tests(source.replace("def test_x", "def helper")) == set()
    assert ids_in_text("- **seq-1** A\n- **seq-2** B") == {"seq-1", "seq-2"}

"""What code asks of TensorRT's Python API, read from its syntax.

Types are followed from the module through constructors and methods, whose answers the real
bindings' docstrings tell. What no type checker knows either, parameters and answers annotated
``Any``, must be declared.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

MODULE = "module"
OTHER = "other"
"""Declared for what is typed ``Any`` but is none of TensorRT's."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """A name that is used: ``Builder``, ``Builder.create_network``; and how, where it is called.

    positional: how many arguments without a name; None: not called.
    """

    path: str
    line: int
    positional: int | None = None
    keywords: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What the scan is told. declared: by name of parameter, function or attribute, its class.

    returns: by ``Class.method``, the class of its answer. through: functions of ours whose first
    argument is called with the rest.
    """

    declared: Mapping[str, str]
    returns: Mapping[str, str]
    through: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a file uses, and the names typed ``Any`` in it that nobody declared."""

    uses: list[Use]
    undeclared: list[str]


def scan(source: str, known: Known) -> Found:
    """Read one file."""
    tree = ast.parse(source)
    scanner = _Scanner(known)
    scanner.visit(tree)
    uses: dict[Use, None] = {}
    for _ in range(2):  # attributes of self are known once every method was seen
        scanner.uses = uses
        scanner.visit(tree)
    return Found(uses=list(uses), undeclared=list(_undeclared(tree, known)))


def _undeclared(tree: ast.AST, known: Known) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            arguments = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            typed = [(one.arg, one.annotation) for one in arguments]
            for name, annotation in (*typed, (node.name, node.returns)):
                if _is_any(annotation) and name not in known.declared:
                    yield f"{name} (line {node.lineno})"


def _is_any(annotation: ast.expr | None) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


@dataclass
class _Scanner(ast.NodeVisitor):
    known: Known
    uses: dict[Use, None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    own: dict[str, str] = field(default_factory=dict)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        before = dict(self.names)
        for one in (*node.args.args, *node.args.kwonlyargs):
            self.names.pop(one.arg, None)
            if _is_any(one.annotation) or one.arg == "trt":
                self.names[one.arg] = self.known.declared.get(one.arg, OTHER)
        self.generic_visit(node)
        self.names = before

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            if one.name == "tensorrt":
                self.names[one.asname or one.name] = MODULE

    def visit_Assign(self, node: ast.Assign) -> None:
        self.visit(node.value)
        for target in node.targets:
            self._bind(target, self.type_of(node.value))
            if isinstance(target, ast.Attribute):
                self._use(target)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, self.type_of(node.iter).removeprefix("list "))
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, self.type_of(node.iter).removeprefix("list "))
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.GeneratorExp | ast.SetComp) -> None:
        for generator in node.generators:
            self.visit(generator)
        self.visit(node.elt)

    visit_GeneratorExp = visit_ListComp  # noqa: N815 - as ast calls its nodes
    visit_SetComp = visit_ListComp  # noqa: N815 - the same

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._use(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        called, arguments = node.func, node.args
        if isinstance(called, ast.Name) and called.id in self.known.through and arguments:
            called, arguments = arguments[0], arguments[1:]
        if isinstance(called, ast.Attribute):
            keywords = tuple(one.arg for one in node.keywords if one.arg)
            first_is_self = self.type_of(called.value).startswith("class ")
            self._use(called, positional=len(arguments) - first_is_self, keywords=keywords)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, kind: str) -> None:
        if isinstance(target, ast.Name):
            self.names[target.id] = kind
        elif isinstance(target, ast.Attribute) and _is_self(target.value) and kind:
            self.own[target.attr] = kind

    def _use(self, node: ast.Attribute, **called: int | tuple[str, ...]) -> None:
        base = self.type_of(node.value).removeprefix("class ")
        if base and base != OTHER and not base.startswith("list "):
            path = node.attr if base == MODULE else f"{base}.{node.attr}"
            self.uses[Use(path=path, line=node.lineno, **called)] = None  # type: ignore[arg-type]

    def type_of(self, node: ast.expr) -> str:
        """Return MODULE, ``class X``, ``X`` for one of it, ``list X`` for several, or nothing."""
        match node:
            case ast.Name(id=name):
                return self.names.get(name, "")
            case ast.Attribute(value=value, attr=name):
                return self._type_of_attribute(value, name)
            case ast.Call(func=ast.Name(id=name)):
                return MODULE if name == "load_tensorrt" else self.known.declared.get(name, "")
            case ast.Call(func=ast.Attribute() as method):
                return self._type_of_answer(method)
            case ast.ListComp(elt=element):
                self.visit_ListComp(node)
                return f"list {self.type_of(element)}" if self.type_of(element) else ""
        return ""

    def _type_of_attribute(self, value: ast.expr, name: str) -> str:
        if _is_self(value):
            return self.own.get(name) or self.known.declared.get(name, "")
        base = self.type_of(value)
        if base == MODULE:
            return f"class {name}"
        return self.known.returns.get(f"{base}.{name}", "")

    def _type_of_answer(self, method: ast.Attribute) -> str:
        kind = self.type_of(method)
        return kind.removeprefix("class ")


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"

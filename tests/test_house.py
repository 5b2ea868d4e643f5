"""House rules that a reader notices: short functions, few settings, arguments with names."""

import ast
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))
MOST_LINES, MOST_SETTINGS = 40, 20
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
KINDS = (*FUNCTIONS, ast.ClassDef, ast.Call)


@cache
def parsed(path: Path) -> list[tuple[str, ast.AST]]:
    """The functions, classes and calls of a file, each with its place."""
    name, nodes = path.relative_to(SRC), ast.walk(ast.parse(path.read_text()))
    return [(f"{name}:{node.lineno}", node) for node in nodes if isinstance(node, KINDS)]


def long_functions(path: Path) -> list[str]:
    return [
        f"{where} {node.name}"
        for where, node in parsed(path)
        if isinstance(node, FUNCTIONS) and num_lines(node) > MOST_LINES
    ]


def num_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring: examples for users make none of it longer."""
    lines = function.end_lineno - function.lineno + 1
    if ast.get_docstring(function) is not None:
        docstring = function.body[0]
        lines -= docstring.end_lineno - docstring.lineno + 1
    return lines


def large_classes(path: Path) -> list[str]:
    return [
        f"{where} {node.name}"
        for where, node in parsed(path)
        if isinstance(node, ast.ClassDef) and num_settings(node) > MOST_SETTINGS
    ]


def num_settings(node: ast.ClassDef) -> int:
    fields = [part for part in node.body if isinstance(part, ast.AnnAssign)]
    return sum("ClassVar" not in ast.unparse(field.annotation) for field in fields)


def splatted_tuples(path: Path) -> list[str]:
    """Calls with `*(a, b)`, or with `*about` where the function has set `about = (a, b)`.

    Not those of a logger or of str.format, whose arguments have no names.
    """
    found = []
    for _, function in parsed(path):
        if not isinstance(function, FUNCTIONS):
            continue
        inside = list(ast.walk(function))
        tuples = {
            target.id
            for node in inside
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in inside:
            if isinstance(call, ast.Call) and not is_format(call.func):
                found += [
                    f"{path.relative_to(SRC)}:{part.lineno} {ast.unparse(part)}"
                    for part in call.args
                    if isinstance(part, ast.Starred)
                    and (
                        isinstance(part.value, ast.Tuple)
                        or (isinstance(part.value, ast.Name) and part.value.id in tuples)
                    )
                ]
    return found


def is_format(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute):
        return False
    return function.attr == "format" or ast.unparse(function.value) in ("log", "logger")


def imports_by_string(path: Path) -> list[str]:
    """Calls that import what a string names."""
    names = ("import_module", "get_class", "get_object", "get_method", "__import__")
    return [
        f"{where} {ast.unparse(node)}"
        for where, node in parsed(path)
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names
    ]


# A config's `_target_`, and the plugins of Pillow that may be installed.
BY_STRING = (
    "base/image_files.py",
    "base/settings.py",
    "engine/graph.py",
    "engine/plan.py",
    "stages/tune/stage.py",
)


def test_strings_name_code_in_configs_and_plugins_alone():
    found = [where for path in FILES for where in imports_by_string(path)]
    assert [x for x in found if not x.startswith(tuple(f"sidepipe/{f}" for f in BY_STRING))] == []


@pytest.mark.parametrize("rule", [long_functions, large_classes, splatted_tuples])
def test_the_source_keeps(rule):
    assert [found for path in FILES for found in rule(path)] == []

"""The house's order: which room may import which, and what appears nowhere, read from the syntax trees."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "synoptic"
FILES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 500  # lines

# Room -> the rooms and modules it may import, itself aside. Any module of a room may be narrowed by a row of its own.
MAY_IMPORT = {
    "types": (),
    "files": (),
    "machine": (),
    "children": (),
    "config": ("files",),
    "losses": ("types",),
    "models": ("types",),
    "data": ("types", "config", "files", "machine"),
    "weights": ("models", "types", "config", "files"),
    "cache": ("files",),
    "zeroshot": (),
    "text_encoder": ("models", "weights", "config", "cache", "zeroshot"),
    "segmenter": ("models", "types", "data"),
    "speaking": ("data", "text_encoder", "types", "weights", "zeroshot"),
    "detection": ("models", "weights", "types", "config", "data", "cache"),
    "predict": (
        *("models", "weights", "types", "config", "data"),
        *("text_encoder", "zeroshot", "segmenter", "speaking", "detection"),
    ),
    "methods": ("models", "losses", "types", "config", "data", "machine"),
    "methods.teachers": ("models", "losses", "types", "config", "data", "weights", "predict"),
    "methods.start": ("models", "weights", "predict"),
    "engine": ("machine", "types", "config", "files", "methods.base"),
    "engine.distributed": ("types", "children", "machine", "methods.base"),
    "evaluation": ("types", "data", "zeroshot"),
    "judging": ("files", "data", "evaluation", "predict", "weights", "methods.teachers"),
    "piloting": ("files", "config", "data", "evaluation", "predict", "run", "methods"),
    "run": (
        *("types", "files", "machine", "config", "losses", "models"),
        *("data", "weights", "predict", "methods", "engine", "evaluation"),
    ),
}
ANYTHING = ("apps", "__init__", "__main__")
PUBLIC = ("VisionModel", "embed", "evaluate", "list_models", "load", "search", "train")


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    """Dotted name inside the package; a room's own `__init__` has the room's name."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if len(parts) > 1 and parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """(line, module) of every import anywhere in a file, those inside functions and for type checkers included."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name: str, rooms: tuple[str, ...]) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def forbidden_imports(path: Path) -> Iterator[str]:
    name = name_of(path)
    room = name.partition(".")[0]
    if room in ANYTHING:
        return
    allowed = MAY_IMPORT.get(name, MAY_IMPORT.get(room))
    assert allowed is not None, f"{path}: the table has no room {room!r}"
    for line, module in imported(path):
        if not module.startswith("synoptic"):
            continue
        target = module.removeprefix("synoptic").removeprefix(".")
        if not within(target, (room, "__version__", *allowed)):
            yield f"{path.relative_to(PACKAGE)}:{line}: {room} imports synoptic.{target}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_one_way(path: Path) -> None:
    assert not list(forbidden_imports(path))


def test_the_rule_sees_a_forbidden_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the guard: an import inside a function, of a module by `from synoptic import`, and by full name."""
    monkeypatch.setattr(sys.modules[__name__], "PACKAGE", tmp_path)
    path = tmp_path / "losses" / "bad.py"
    path.parent.mkdir()
    path.write_text("def f():\n    from synoptic import run\n    import synoptic.models.vit\nimport torch\n")
    assert len(list(forbidden_imports(path))) == 2


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    """Every call with its dotted name as written, and the last part alone where the object is an expression."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Call):
            yield node, ast.unparse(node.func) if isinstance(node.func, ast.Attribute | ast.Name) else ""


def keyword(call: ast.Call, name: str) -> object:
    return next((ast.unparse(item.value) for item in call.keywords if item.arg == name), None)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_appears_nowhere(path: Path) -> None:
    name = name_of(path)
    found = []
    for call, function in calls(path):
        last = function.rpartition(".")[2]
        if function == "print" and not within(name, ("apps", "engine.observe")):
            found.append((call.lineno, "print outside apps and engine/observe.py"))
        if last == "load_state_dict" and keyword(call, "strict") not in (None, "True"):
            found.append((call.lineno, "load_state_dict that is not strict"))
        if function == "torch.load" and keyword(call, "weights_only") != "True":
            found.append((call.lineno, "torch.load without weights_only=True"))
        if last == "cuda" and not function.startswith("torch."):
            found.append((call.lineno, ".cuda()"))
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            found.append((node.lineno, "bare except"))
    assert not found


@pytest.mark.parametrize("path", [path for path in FILES if name_of(path) != "engine.distributed"], ids=name_of)
def test_collectives_live_in_one_file(path: Path) -> None:
    assert not [line for line, module in imported(path) if within(module, ("torch.distributed",))]
    used = [node for node in ast.walk(tree(path)) if isinstance(node, ast.Attribute)]
    assert not [node.lineno for node in used if ast.unparse(node).startswith("torch.distributed")]


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_fit_in_a_head(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LONGEST


@pytest.mark.parametrize("module", ["synoptic", "synoptic.config", "synoptic.apps.cli"])
def test_start_up_imports_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'numpy', 'transformers', 'scipy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_the_public_names_are_listed_and_unknown_ones_refused() -> None:
    import synoptic

    assert {*PUBLIC} <= set(dir(synoptic))
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        synoptic.lode  # noqa: B018


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_resolves(name: str) -> None:
    import synoptic

    assert callable(getattr(synoptic, name))

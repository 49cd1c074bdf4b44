"""What is imported is declared, what is declared is imported, and every version is pinned within its declared range."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
DISTRIBUTIONS = {"PIL": "pillow", "faiss": "faiss-cpu", "xdist": "pytest-xdist"}  # where the import has another name
TOOLS = {"mypy", "ruff", "pytest-xdist"}  # used without being imported


def requirements(lines: Iterable[str]) -> dict[str, Requirement]:
    return {canonicalize_name(line.name): line for line in map(Requirement, lines)}


CORE = requirements(PROJECT["dependencies"])
DEV = requirements(PROJECT["optional-dependencies"]["dev"])
PINS = requirements(
    line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if not line.startswith("#")
)


def imported(*folders: str) -> set[str]:
    """Distributions that the files in some folders import, wherever in the file."""
    modules: set[str] = set()
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules.add(node.module or "")
    if "torch.utils.tensorboard" in modules:
        modules.add("tensorboard")
    neighbours = {path.stem for path in paths if not (path.parent / "__init__.py").exists()}  # outside the package
    ours = {"synoptic", *neighbours}
    names = {module.partition(".")[0] for module in modules} - ours - sys.stdlib_module_names
    return {canonicalize_name(DISTRIBUTIONS.get(name, name)) for name in names}


def test_the_library_imports_what_it_declares_and_nothing_else() -> None:
    assert imported("synoptic") == set(CORE)


def test_tests_and_benchmarks_import_what_is_declared() -> None:
    used = imported("tests", "benchmarks")
    assert used <= set(CORE) | set(DEV)
    assert set(DEV) - used == TOOLS


def test_every_dependency_is_pinned_to_a_version_in_its_range() -> None:
    for name, requirement in {**CORE, **DEV}.items():
        exact = re.fullmatch(r"==([^*]+)", str(PINS[name].specifier))
        assert exact, f"{PINS[name]} is no exact pin"
        assert exact[1] in requirement.specifier


def test_what_is_said_not_to_be_pinned_is_not() -> None:
    comment = " ".join(
        line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if "#" in line
    )
    assert "Not pinned" in comment and "setuptools" in comment and "GPU build" in comment
    assert not [name for name in PINS if name == "setuptools" or name.startswith(("nvidia-", "triton", "cuda-"))]


def test_the_packages_that_do_not_fit_beside_a_cpu_build_stay_out() -> None:
    assert not {"torchvision", "timm", "open-clip-torch"} & {*CORE, *DEV, *PINS}

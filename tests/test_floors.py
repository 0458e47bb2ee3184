"""The house: which module may import which, where the heavy libraries live, and what stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import tunnel

ROOT = Path(tunnel.__file__).parent.parent
FLOORS = {
    module.rstrip("/"): int(row[1])
    for row in re.finditer(r"^    (\d) \w+ +(.+)$", tunnel.__doc__ or "", re.M)
    for module in row[2].split()
}
HOMES = {  # a heavy library: who may import it
    "torch": {
        "families",
        "training/train",
        "training/pack",
        "training/parallel",
        "training/members",
        "training/masking",
        "training/distill",
        "training/finetune",
        "verdicts/coordinates",
        "sweeps/on_ray",
        "export",
    },
    "transformers": {"families", "training/words", "training/distill", "training/finetune", "export"},
    "datasets": {"training/data"},
    "optuna": {"folder/asks", "folder/database", "sampler", "mirror", "proposals", "pareto"},
    "ray": {"sweeps/cluster", "sweeps/on_ray", "sweeps/on_train", "sweeps/submit"},
    "scipy": {"quantiles"},
    "fsspec": {"folder/remote"},
    "streamlit": {"dashboard"},
    "plotly": {"dashboard"},
}
FILES = sorted(p for folder in ("tunnel", "dashboard") for p in (ROOT / folder).rglob("*.py"))


def place(path: Path) -> str:
    """A file in the house: tunnel/laws/size.py is laws/size, dashboard/app.py is dashboard/app."""
    return str(path.relative_to(ROOT).with_suffix("")).removeprefix("tunnel/")


def module_of(path: Path) -> str:
    """A file's place in the table: tunnel/laws/size.py is laws, dashboard/app.py is dashboard."""
    return place(path).split("/")[0]


def imported(tree: ast.AST) -> Iterator[str]:
    """The full names that a tree imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide a module's floor"
            yield from (f"{node.module}.{a.name}" for a in node.names)


def ours(name: str) -> str | None:
    """The module of the table that a full name belongs to."""
    first, *rest = name.split(".")
    if first == "dashboard":
        return first
    return rest[0] if first == "tunnel" and rest and rest[0] in FLOORS else None


def test_the_table_names_every_module_once() -> None:
    found = {module_of(p) for p in FILES} - {"__init__"}
    assert found == set(FLOORS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_floor_imports_none_above_it(path: Path) -> None:
    module = module_of(path)
    names = list(imported(ast.parse(path.read_text())))
    for name in names:
        other = ours(name)
        assert other is None or module == "__init__" or FLOORS[other] <= FLOORS[module], f"{module} imports {name}"
        heavy = name.split(".")[0]
        homes = HOMES.get(heavy, {module})
        assert module in homes or place(path) in homes, f"{heavy} has its home in {homes}, not in {path}"


def test_the_vocabulary_stands_alone() -> None:
    """Floor 0: pydantic and the standard library."""
    for path in FILES:
        if FLOORS.get(module_of(path)) == 0:
            roots = {n.split(".")[0] for n in imported(ast.parse(path.read_text()))}
            assert roots <= {*sys.stdlib_module_names, "pydantic", "tunnel"}, path


LIGHT = [
    "tunnel",
    "tunnel.cli",
    "tunnel.plan",
    "tunnel.answers.recommend",
    "tunnel.sweeps.sweep",
    "dashboard.load",
    "dashboard.report",
]


@pytest.mark.parametrize("module", LIGHT)
def test_what_stays_light(module: str) -> None:
    code = f"import sys, {module}; print(*sorted({{'torch', 'ray', 'transformers'}} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip() == ""

"""The walls between the rooms, read from the source: who may import whom, and what stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("evolve", "genome", "merge_engine", "fitness")

# room -> prefixes of sibling modules that it may import
MAY_IMPORT = {
    "evolve": ("genome", "merge_engine", "fitness"),
    "genome": ("merge_engine.spec", "merge_engine.errors"),
    "merge_engine": (),
    "fitness": (),
}

HEAVY = {"torch", "transformers", "lm_eval", "ray", "cma", "wandb", "matplotlib", "datasets", "safetensors"}
LIGHT_MODULES = [
    "genome",
    "merge_engine.spec",
    "merge_engine.errors",
    "merge_engine.checkpoint_header",
    "merge_engine.fingerprint",
    "merge_engine.config_layers",
    "merge_engine.documents",
    "merge_engine.layers",
    "merge_engine.parts",
    "merge_engine.plan",
    "merge_engine.sources",
    "merge_engine.stacking",
    "merge_engine.tied",
    "merge_engine.vocabulary.alignment",
    "fitness.quantisation",
    "fitness.results",
    "fitness.suite",
    "fitness.task_index",
    "fitness.vllm_settings",
    "fitness.vllm_support",
    "evolve.cli",
    "evolve.disk_evaluator",
    "evolve.evaluator_spec",
    "evolve.explain",
    "evolve.layouts",
    "evolve.preflight",
    "evolve.journal",
    "evolve.stages",
]


def imported_modules(path: Path) -> set[str]:
    """Every absolute module name that the file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; this project writes absolute ones"
            assert node.module is not None
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room: str) -> None:
    siblings = set(ROOMS) - {room}
    files = sorted((ROOT / room).rglob("*.py"))
    assert files
    for path in files:
        for name in imported_modules(path):
            if name.split(".")[0] in siblings:
                allowed = any(name == prefix or name.startswith(prefix + ".") for prefix in MAY_IMPORT[room])
                assert allowed, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("room", ["genome", "merge_engine/spec"])
def test_pure_rooms_import_no_heavy_library_at_all(room: str) -> None:
    for path in sorted((ROOT / room).rglob("*.py")):
        heavy = {name.split(".")[0] for name in imported_modules(path)} & HEAVY
        assert not heavy, f"{path.relative_to(ROOT)} imports {heavy}"


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_light_modules_load_no_heavy_library(module: str) -> None:
    """Imported in a fresh interpreter, so that what they import in turn counts too."""
    code = f"import sys, {module}; print(sorted(set({sorted(HEAVY)}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

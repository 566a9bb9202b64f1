"""The house as style.md draws it: who may know whom, and who may print."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "cohort_scorer"
MODULES = sorted(PACKAGE.rglob("*.py"))
WINGS = ("imaging", "prediction", "cohort", "statistics", "reporting", "simulation")
FOUNDATION = ("storage", "provenance", "schemas", "study", "workers", "errors")


def imports(path: Path) -> Iterator[str]:
    """Full names of what a module imports, inside functions too, but not what only type checkers read."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{name.name}" for name in node.names)


def who_imports(library: str) -> set[str]:
    return {
        path.relative_to(PACKAGE).parts[0]
        for path in MODULES
        if any(name == library or name.startswith(f"{library}.") for name in imports(path))
    }


@pytest.mark.parametrize("wing", WINGS)
def test_wings_know_the_foundation_and_themselves_only(wing: str) -> None:
    for path in (PACKAGE / wing).glob("*.py"):
        for name in imports(path):
            if name.startswith("cohort_scorer."):
                assert name.split(".")[1] in (*FOUNDATION, wing), f"{path.name} imports {name}"


@pytest.mark.parametrize("module", FOUNDATION)
def test_foundation_knows_no_wing_and_no_stage(module: str) -> None:
    for name in imports(PACKAGE / f"{module}.py"):
        assert not name.startswith(tuple(f"cohort_scorer.{room}" for room in (*WINGS, "stages", "cli")))


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("torch", {"imaging"}),
        ("transformers", {"imaging"}),
        ("cv2", {"imaging"}),
        ("pydicom", {"imaging", "simulation"}),
        ("lifelines", {"statistics"}),
        ("pandas", {"statistics"}),
        ("matplotlib", {"reporting"}),
        ("typer", {"cli.py"}),
    ],
)
def test_library_stays_in_its_rooms(library: str, rooms: set[str]) -> None:
    assert who_imports(library) == rooms


def test_only_the_command_line_prints_and_exits() -> None:
    for path in MODULES:
        if path.name not in ("cli.py", "console.py"):
            calls = [
                node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)
            ]
            names = {call.func.id for call in calls if isinstance(call.func, ast.Name)}
            assert not names & {"print", "exit"}, path


def test_random_numbers_come_from_seeded_generators() -> None:
    for path in MODULES:
        assert "np.random.seed" not in path.read_text(encoding="utf-8")
        assert "import random" not in path.read_text(encoding="utf-8")

"""The house keeps its shape: who imports whom, how long things are, which config fields are read."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted((ROOT / "ilr_jax").rglob("*.py"))
HEAVY = {"jax", "jaxlib", "flax", "optax", "orbax", "chex"}
# Room -> rooms of ours that it may import. A room is a file or a folder of ilr_jax.
ARROWS = {
    "types": set(),
    "files": set(),
    "progress": {"interruption"},
    "sharding": set(),
    "interruption": set(),
    "hosts": set(),
    "mirror": {"files"},
    "store": {"files", "mirror", "types"},
    "services": {"files", "progress", "types"},
    "metrics": set(),
    "tokenizer": {"models"},
    "batches": {"types"},
    "tasks": {"types", "files"},
    "models": {"types", "files", "sharding"},
    "sample": {"hosts", "models", "progress", "sharding", "types"},
    "train": {"files", "hosts", "interruption", "mirror", "models", "progress", "sharding", "types"},
    "refine": {"types"},
    "page": {"files", "types"},
    "estimates": {"files", "metrics", "refine", "types"},
    "report": {"estimates", "files", "page", "settings", "types"},
    "provenance": {"files", "report", "types"},
    "settings": {"tasks", "types"},
    "roles": {"files", "hosts", "models", "sharding", "tokenizer", "types"},
    "stages": {
        "batches",
        "files",
        "hosts",
        "interruption",
        "mirror",
        "models",
        "progress",
        "roles",
        "sample",
        "sharding",
        "store",
        "tokenizer",
        "train",
        "types",
    },
    "dpo": {"batches", "files", "hosts", "models", "progress", "roles", "sharding", "stages", "train", "types"},
    "evaluator": {"batches", "hosts", "models", "progress", "roles", "sharding", "stages", "train", "types"},
    "judges": {"batches", "hosts", "progress", "refine", "roles", "services", "sharding", "stages", "tokenizer", "train"},
    "lab": {"hosts", "refine", "roles", "sample", "services", "stages", "store", "tasks", "types"},
    "demos": {"files", "lab", "refine", "roles", "stages", "types"},
    "feedback": {"evaluator", "files", "hosts", "judges", "lab", "refine", "roles", "services", "stages", "tokenizer", "types"},
    "refinement": {"feedback", "files", "lab", "refine", "roles", "stages", "types"},
    "preference": {"dpo", "feedback", "files", "lab", "refine", "stages", "types"},
    "rounds": {"demos", "feedback", "files", "hosts", "lab", "metrics", "preference", "refinement", "settings", "stages", "store", "types"},
    "export": {"files", "models", "roles", "stages", "store"},
    "main": {"hosts", "interruption", "models", "progress", "rounds", "types"},
    "plan": {"batches", "evaluator", "main", "models", "refine", "roles", "sample", "services", "settings", "sharding", "stages", "store"}
    | {"tasks", "train", "types"},
    "sweep": {"estimates", "files", "interruption", "main", "page", "report", "settings", "store", "types"},
    "cli": {"main", "sweep", "report", "export", "files", "mirror", "provenance", "store", "types"},
}
WITHOUT_JAX = {
    "types",
    "files",
    "interruption",
    "progress",
    "store",
    "metrics",
    "batches",
    "tasks",
    "settings",
    "refine",
    "page",
    "report",
    "estimates",
}
WITHOUT_JAX |= {"mirror", "provenance", "services", "sweep"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "ilr_jax").parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    """Dotted names of everything that a file imports, inside functions too, but not what it does as a program."""
    found, tree = set(), ast.parse(path.read_text())
    tree.body = [node for node in tree.body if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_arrows(path):
    room = room_of(path)
    ours = {name.split(".")[1] for name in imports(path) if name.startswith("ilr_jax.")}
    allowed = ARROWS.get(room, set()) | {room, "__version__"}
    assert ours <= allowed, f"{room} may not import {sorted(ours - allowed)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) in WITHOUT_JAX], ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_without_jax(path):
    assert not {name.split(".")[0] for name in imports(path)} & HEAVY


@pytest.mark.parametrize(
    "path",
    sorted(p for d in ("ilr_jax", "configs", "tests", "tools", "benchmarks") for p in (ROOT / d).rglob("*.py")),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_lengths(path):
    text = path.read_text()
    assert text.count("\n") <= 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert (node.end_lineno or 0) - node.lineno < 60, f"{path}:{node.lineno} {node.name}"


def test_configs_import_only_their_base():
    for path in (ROOT / "configs").glob("*.py"):
        assert {name.split(".")[0] for name in imports(path)} <= {"ml_collections", "configs", "typing"}


def test_every_config_field_is_read():
    from configs import base

    read = {node.attr for path in SOURCES for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}

    def fields(config):
        for name, value in config.items():
            yield from fields(value) if hasattr(value, "items") and name != "rules" else [name]  # rules are read as one table

    assert not set(fields(base.get_config())) - read


def test_torch_is_never_imported_by_the_package():
    for path in [*SOURCES, *(ROOT / "configs").glob("*.py")]:
        assert not {name.split(".")[0] for name in imports(path)} & {"torch", "peft", "trl"}


def test_every_experiment_config_opens_with_how_to_run_it():
    for path in (ROOT / "configs").glob("*.py"):
        if path.stem not in ("__init__", "base"):
            text = ast.get_docstring(ast.parse(path.read_text())) or ""
            assert all(word in text for word in ("Command:", "Hardware:", "Hours:", "Expected:")), path

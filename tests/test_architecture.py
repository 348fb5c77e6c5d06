"""Who may import what, and what does not exist."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from experiments.drawing import architecture

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mmvae_jax"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in (PACKAGE, "configs", "datasets", "experiments", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
}
LIBRARY = sorted(name for name in SOURCES if name.startswith(PACKAGE))
BASIS = {"types", "errors", "tokens", "files"}
# library -> the modules of mmvae_jax that may know of it.
KNOWN_BY = {
    "tensorflow_datasets": {"data.prepared"},
    "orbax": {"training.checkpoints"},
    "tensorboardX": {"training.sinks"},
    "wandb": {"training.sinks"},
    "mlflow": {"training.sinks"},
    "sacrebleu": {"evaluation.metrics.captions"},
    "PIL": {"training.log", "evaluation.pictures"},
    "flax.linen": {"networks"},
    "ml_collections": {"interface"},
    "safetensors": {"interface.exports"},
    "huggingface_hub": {"interface.exports"},
    "tqdm": {"interface.progress"},
    "absl": set(),
    "clu": set(),
    "tensorflow": set(),
    "torch": set(),
    "configs": set(),
    "experiments": set(),
    "polymnist": set(),
    "discrete": set(),
    "pairs": set(),
    "cub": set(),
    "shapes": set(),
}


def tree(name):
    return ast.parse(SOURCES[name].read_text())


def imports(name):
    """Dotted names of all that a file imports, wherever in the file it does."""
    found = set()
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} has a relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def is_within(name, package):
    return name == package or name.startswith(package + ".")


def import_rule():
    """Room -> the rooms it may import from, as mmvae_jax/__init__.py says."""
    text = ast.get_docstring(tree(f"{PACKAGE}.__init__"))
    rows = re.findall(r"^(\w+) +<-(.*)$", text, re.MULTILINE)
    return {room: set(others.split()) for room, others in rows}


def rooms_of(folder):
    return {path.parent.name for path in (ROOT / folder).glob("*/__init__.py")}


def test_the_rule_has_a_row_for_every_room_and_no_cycle():
    below = import_rule()
    assert below.keys() == rooms_of(PACKAGE)
    assert all(others <= below.keys() for others in below.values())
    while leaves := {room for room, others in below.items() if not others}:
        below = {r: others - leaves for r, others in below.items() if r not in leaves}
    assert not below
    files = {path.stem for path in (ROOT / PACKAGE).glob("*.py")}
    assert files - {"__init__", "__main__"} == BASIS


@pytest.mark.parametrize("name", LIBRARY)
def test_rooms_import_only_what_the_rule_allows(name):
    room = name.split(".")[1]
    allowed = (
        BASIS if room in BASIS else BASIS | {room} | import_rule().get(room, set())
    )
    for imported in imports(name):
        if is_within(imported, PACKAGE) and imported != f"{PACKAGE}.__version__":
            assert imported.split(".")[1] in allowed, f"{name}: {imported}"


def test_rooms_of_experiments_do_not_import_commands():
    rooms = rooms_of("experiments")
    for name in SOURCES:
        parts = name.split(".")
        if parts[0] == "experiments" and parts[1] in rooms:
            for imported in imports(name):
                if is_within(imported, "experiments"):
                    assert imported.split(".")[1] in rooms, f"{name}: {imported}"


@pytest.mark.parametrize("library", KNOWN_BY)
def test_libraries_are_known_in_one_place(library):
    users = {
        name.removeprefix(f"{PACKAGE}.")
        for name in LIBRARY
        if any(is_within(imported, library) for imported in imports(name))
    }
    known = KNOWN_BY[library]
    assert all(any(is_within(user, place) for place in known) for user in users)
    assert all(any(is_within(user, place) for user in users) for place in known)


def test_data_sets_and_configs_stand_alone():
    for name in SOURCES:
        outside = {PACKAGE, "experiments", "tests"}
        if name.startswith("datasets."):
            outside |= {"configs"}
        elif not name.startswith("configs."):
            continue
        for imported in imports(name):
            # Captions are written and read by the same functions.
            is_tokens = is_within(imported, f"{PACKAGE}.tokens")
            if name.startswith("datasets.") and is_tokens:
                continue
            places = (f"{PACKAGE}.models", f"{PACKAGE}.interface.settings")
            if name.startswith("configs.") and any(
                is_within(imported, place) for place in places
            ):
                continue
            assert not any(is_within(imported, other) for other in outside), name


def test_nothing_is_imported_as_datasets():
    """It would be, or would hide, the library of that name."""
    assert not (ROOT / "datasets" / "__init__.py").exists()
    for name in SOURCES:
        assert not any(is_within(i, "datasets") for i in imports(name)), name


def test_flags_belong_to_entry_points():
    for name in SOURCES:
        if any(is_within(imported, "absl.flags") for imported in imports(name)):
            assert name.startswith("experiments."), name


def test_what_does_not_exist():
    for name, path in SOURCES.items():
        assert path.name not in ("utils.py", "helpers.py", "misc.py"), name
        assert not any(is_within(i, "jax._src") for i in imports(name)), name
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Attribute):
                assert ast.unparse(node) not in ("jax._src", "jax.pmap"), name
            if isinstance(node, ast.Call) and name.startswith(PACKAGE):
                called = ast.unparse(node.func)
                assert called not in ("print", "jax.config.update"), name


def test_the_wheel_holds_every_room():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    found = project["tool"]["setuptools"]["packages"]["find"]
    assert found == {"include": [f"{PACKAGE}*"]}
    for path in (ROOT / PACKAGE).rglob("*.py"):
        assert (path.parent / "__init__.py").exists(), path


def test_the_picture_of_the_rooms_shows_the_imports(tmp_path):
    counted = architecture.count_imports(ROOT)
    assert counted["models", "mathematics"] > 10
    assert all(number > 0 for number in counted.values())
    for room, others in import_rule().items():
        drawn = {below for above, below in counted if above == room}
        assert drawn - {"basis"} <= others
    path = architecture.draw(ROOT, tmp_path / "rooms.png")
    assert path.read_bytes().startswith(b"\x89PNG")

"""Who may import what, and what does not exist."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "mmvae_jax"
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts): path
    for folder in (PACKAGE, "configs", "datasets", "experiments", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
}
LIBRARY = sorted(name for name in SOURCES if name.startswith(PACKAGE))

# module of mmvae_jax -> what it may import from mmvae_jax, mathematics first.
BASIS = {"errors", "types"}
MAY_IMPORT = {
    "": set(),
    "types": set(),
    "errors": set(),
    "files": set(),
    "tokens": {"types"},
    "distributions": BASIS | {"tokens"},
    "subsets": BASIS,
    "posteriors": BASIS | {"distributions", "subsets", "meshes"},
    "objectives": BASIS | {"distributions", "subsets", "posteriors"},
    "importance": BASIS | {"distributions", "posteriors", "objectives"},
    "theory": BASIS | {"distributions", "subsets", "posteriors"},
    "layers": BASIS,
    "text_networks": BASIS | {"layers", "tokens"},
    "networks": BASIS | {"layers", "text_networks"},
    "models.options": set(),
    "models.parts": BASIS
    | {"distributions", "posteriors", "objectives", "networks", "models.options"},
    "models.joint_encoder": BASIS | {"networks", "models.parts"},
    "models.*": BASIS
    | {"distributions", "subsets", "posteriors", "objectives", "importance"}
    | {"models.*"},
    "models": BASIS | {"subsets", "objectives", "importance", "models.*"},
    "data": BASIS,
    "arrays": BASIS | {"data"},
    "sweeps": BASIS,
    "meshes": BASIS,
    "train": BASIS | {"objectives", "data", "sweeps", "meshes"},
    "checkpoints": BASIS,
    "writers": BASIS | {"files", "sweeps"},
    "pictures": BASIS | {"data", "tokens"},
    "inception": BASIS,
    "inception_weights": BASIS | {"files"},
    "metrics": set(),
    "metrics.inputs": BASIS | {"distributions", "data", "tokens"},
    "metrics.frechet": BASIS | {"files", "data", "metrics.inputs"},
    "metrics.captions": BASIS | {"distributions", "data", "tokens", "metrics.inputs"},
    "metrics.*": BASIS | {"distributions", "data", "metrics.inputs"},
    "tuning": BASIS | {"sweeps", "meshes", "train"},
    "classifiers": BASIS
    | {"files", "networks", "data", "sweeps", "train", "tuning", "metrics.inputs"},
    "readers": BASIS | {"data", "tokens", "train", "metrics.inputs", "classifiers"},
    "matchers": BASIS
    | {"networks", "data", "sweeps", "train", "metrics.metric", "classifiers"},
    "judges": BASIS | {"data", "train", "classifiers", "readers", "matchers"},
    "needs": BASIS
    | {"data", "inception", "inception_weights", "classifiers", "judges"}
    | {"metrics", "metrics.*"},
    "evaluate": BASIS
    | {"distributions", "data", "pictures", "needs", "metrics", "metrics.*"},
}
# library -> the modules of mmvae_jax that may know of it.
KNOWN_BY = {
    "tensorflow_datasets": {"data"},
    "orbax": {"checkpoints"},
    "tensorboardX": {"writers"},
    "sacrebleu": {"metrics.captions"},
    "PIL": {"writers", "pictures"},
    "flax": {"layers", "text_networks", "networks", "inception", "classifiers"},
    "flax.linen": {"layers", "text_networks", "networks", "inception"},
    "ml_collections": set(),
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


def local(name):
    """mmvae_jax.metrics.elbo -> metrics.elbo."""
    return name.removeprefix(PACKAGE).removeprefix(".").removesuffix("__init__")


def module_of(imported):
    """The module that a dotted name belongs to, or None outside of mmvae_jax."""
    if not is_within(imported, PACKAGE):
        return None
    parts = imported.split(".")
    while parts and ".".join(parts) not in SOURCES:
        parts.pop()
        if ".".join([*parts, "__init__"]) in SOURCES:
            break
    return local(".".join(parts))


def allowed(module):
    if module in MAY_IMPORT:
        return MAY_IMPORT[module]
    folder = module.partition(".")[0]
    assert f"{folder}.*" in MAY_IMPORT, f"add {module} to the table MAY_IMPORT"
    return MAY_IMPORT[f"{folder}.*"]


@pytest.mark.parametrize("name", LIBRARY)
def test_modules_import_only_what_is_below_them(name):
    module = local(name).removesuffix(".")
    for imported in imports(name):
        below = module_of(imported)
        if below is not None:
            folder = f"{below.partition('.')[0]}.*"
            is_in_folder = "." in below and folder in allowed(module)
            assert below in allowed(module) or is_in_folder, f"{name}: {imported}"


@pytest.mark.parametrize("library", KNOWN_BY)
def test_libraries_are_known_in_one_place(library):
    users = {
        local(name)
        for name in LIBRARY
        if any(is_within(imported, library) for imported in imports(name))
    }
    assert users <= KNOWN_BY[library]


def test_the_table_has_no_cycle_and_names_real_libraries():
    below = {
        m: {x if x in MAY_IMPORT else "metrics.*" for x in imported if x != m}
        for m, imported in MAY_IMPORT.items()
    }
    while leaves := {m for m, imported in below.items() if not imported}:
        below = {m: x - leaves for m, x in below.items() if m not in leaves}
    assert not below
    for library in (
        "tensorflow_datasets",
        "orbax",
        "tensorboardX",
        "sacrebleu",
        "flax.linen",
    ):
        present = {m for m in KNOWN_BY[library] if f"{PACKAGE}.{m}" in SOURCES}
        for module in present:
            names = imports(f"{PACKAGE}.{module}")
            assert any(is_within(imported, library) for imported in names)


def test_data_sets_and_configs_stand_alone():
    for name in SOURCES:
        outside = {PACKAGE, "experiments", "tests"}
        if name.startswith("datasets."):
            outside |= {"configs"}
        elif not name.startswith("configs."):
            continue
        for imported in imports(name):
            # Defaults of a model's options stand beside its builder.
            if name.startswith("configs.") and imported == f"{PACKAGE}.models":
                continue
            # Captions are written and read by the same functions.
            if name.startswith("datasets.") and module_of(imported) == "tokens":
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


def test_the_docstring_lists_every_module():
    listed = ast.get_docstring(tree(f"{PACKAGE}.__init__"))
    words = {line.split()[0] for line in listed.splitlines() if line.strip()}
    for path in (ROOT / PACKAGE).glob("*.py"):
        assert path.stem == "__init__" or path.stem in words, path.stem


def test_the_wheel_holds_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = project["tool"]["setuptools"]["packages"]
    found = {path.parent.relative_to(ROOT) for path in ROOT.glob(f"{PACKAGE}/**/*.py")}
    assert sorted(packages) == sorted(".".join(path.parts) for path in found)

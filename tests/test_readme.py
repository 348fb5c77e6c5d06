"""README.md: its table is that of the models, links lead somewhere, its code runs."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from mmvae_jax.models import MODELS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted(
    path.relative_to(ROOT)
    for path in (
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "datasets").rglob("*.md"),
    )
)
COMMANDS = [
    line.partition("  #")[0].strip()
    for block in re.findall(r"^```bash\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    for line in block.replace("\\\n", " ").splitlines()
]
PYTHON = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def table_of_models():
    """The rows of the table as MODELS has them."""
    rows = []
    for name, model in MODELS.items():
        year = re.search(r"\d{4}", model.citation.text)
        cells = [f"`{name}`", model.label, year[0] if year else "–", model.summary]
        rows.append(f"| {' | '.join([*cells, f'`{model.citation.key}`'])} |")
    return "\n".join(rows)


def anchors_of(page):
    """The anchors of a page's headings, as GitHub and the site make them."""
    heads = re.findall(r"^#+ (.+)$", (ROOT / page).read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", head.strip().lower()) for head in heads]
    return {head.replace(" ", "-") for head in plain}


def links_of(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(), flags=re.DOTALL)
    return re.findall(r"\]\(\s*([^)\s]+)\)", text)


def test_it_is_short():
    assert len(README.splitlines()) <= 150
    assert sum(bool(x.strip()) for x in PYTHON[0].splitlines()) <= 12


def test_the_table_of_models_is_the_table_of_models():
    head = "| name | model | year | in one sentence | cite |\n|---|---|---|---|---|\n"
    assert f"{head}{table_of_models()}\n\n" in README, table_of_models()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page):
    for link in links_of(page):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / page.parent / path) if path else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target.resolve().relative_to(ROOT)), link


def test_commands_are_calls_of_this_project():
    """`make` has each target, Python each module; the others are the shell's."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    for command in COMMANDS:
        first, *rest = shlex.split(command)
        if first == "make":
            assert {x for x in rest if "=" not in x} <= targets, command
        elif first == "python":
            assert rest[0] == "-m", command
            path = ROOT / rest[1].replace(".", "/")
            assert path.with_suffix(".py").exists() or path.is_dir(), command
        else:
            assert command == "source .venv/bin/activate"


def test_make_calls_what_the_tests_of_the_commands_run():
    """The recipes of the README's targets; the environment is taken as it is."""
    stamps = [f"--assume-old=.venv/{x}.stamp" for x in ("run", "test")]
    called = {
        "setup": "",
        "demo": "-m experiments.demo --workdir=runs/demo",
        "test": '-m pytest -m "not slow"',
    }
    for command in COMMANDS:
        if command.startswith("make"):
            words = [*shlex.split(command), "--dry-run", *stamps]
            done = subprocess.run(
                words, cwd=ROOT, check=True, capture_output=True, text=True
            )
            assert called[words[1]] in done.stdout


@pytest.mark.slow
def test_its_commands_run_as_written(tmp_path):
    """In an empty folder that holds what a checkout does."""
    for name in ("configs", "datasets", "experiments", "mmvae_jax", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    }
    commands = [x for x in COMMANDS if x.startswith("python")]
    assert len(commands) >= 4
    for command in commands:
        subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
    assert (tmp_path / "runs" / "report.html").exists()
    (call,) = re.findall(r"`(mmvae_jax\.load\(.*?\))`", README)
    check = f"import mmvae_jax; mmvae_jax.generate({call}, 2)"
    subprocess.run([sys.executable, "-c", check], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_its_python_runs_as_written(tmp_path):
    program = "\n".join(PYTHON)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    )
    assert re.search(r"\(1797, \d+\)", done.stdout), done.stdout

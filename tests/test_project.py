"""The files that tell others about the project agree, and what they call exists."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import mmvae_jax

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
TEMPLATES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir())


def read_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def test_the_version_is_in_one_place():
    command = [sys.executable, "-m", "mmvae_jax", "--version"]
    printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE)
    assert printed.stdout.decode().strip() == mmvae_jax.__version__
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    assert "version" not in read_yaml("CITATION.cff")
    assert str(Version(mmvae_jax.__version__)) == mmvae_jax.__version__


def test_every_extra_has_its_reason():
    """And one extra for each CUDA of JAX: drivers decide which can be used."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    _, _, table = text.partition("## Why each dependency is there")
    extras = PROJECT["optional-dependencies"]
    assert {"cuda12", "cuda13"} <= extras.keys()
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("|")]
    for name, packages in extras.items():
        assert any(f"(extra `{name}`)" in row for row in rows), name
        for package in packages:
            asked = re.match(r"[\w-]+(\[cuda\d+\])?", package)[0]
            assert any(asked in row for row in rows), package


def test_the_licence_is_named_alike():
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text and "Version 2.0" in text
    assert "END OF TERMS AND CONDITIONS" in text
    citation = read_yaml("CITATION.cff")
    assert citation["license"] == PROJECT["license"] == "Apache-2.0"
    (author,) = {x["name"] for x in (*PROJECT["authors"], *citation["authors"])}
    assert f"Copyright 2026 {author}" in text


def test_the_citation_file_has_what_its_form_demands():
    citation = read_yaml("CITATION.cff")
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    for reference in citation["references"]:
        assert {"type", "title", "authors"} <= reference.keys()


def test_the_changelog_keeps_its_form():
    text = (ROOT / "CHANGELOG.md").read_text()
    heads = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert heads[0] == "[Unreleased]"
    for head in heads[1:]:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", head), head
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    assert set(re.findall(r"^### (.+)$", text, re.MULTILINE)) <= kinds


@pytest.mark.parametrize("path", sorted((ROOT / ".github/workflows").iterdir()))
def test_workflows_call_targets_that_exist(path):
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    jobs = read_yaml(path)["jobs"]
    for job in jobs.values():
        for step in job["steps"]:
            assert re.match(r"actions/[\w-]+@v\d+$", step.get("uses", "actions/a@v1"))
            words = shlex.split(step.get("run", "make test"))
            assert words[0] == "make" and set(words[1:]) <= targets
    assert "http" not in path.read_text()


def test_the_tests_run_on_every_python_that_the_project_names():
    jobs = read_yaml(".github/workflows/checks.yml")["jobs"]
    tested = jobs["tests"]["strategy"]["matrix"]["python"]
    prefix = "Programming Language :: Python :: "
    named = [x.removeprefix(prefix) for x in PROJECT["classifiers"] if prefix in x]
    assert tested == named
    assert all(x in SpecifierSet(PROJECT["requires-python"]) for x in tested)


def test_hooks_call_the_tools_of_the_constraints():
    (repo,) = read_yaml(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    tools = {Path(hook["entry"].split()[0]) for hook in repo["hooks"]}
    assert tools == {Path(".venv/bin/ruff"), Path(".venv/bin/mypy")}
    for tool in tools:
        assert re.search(rf"^{tool.name}==", CONSTRAINTS, re.MULTILINE)


def test_templates_have_the_checklists_of_the_house():
    def lines(path, bullet):
        text = (ROOT / path).read_text()
        *_, text = text.rpartition("## Checklists")
        found = re.findall(rf"^{re.escape(bullet)} (.+)$", text, re.MULTILINE)
        return [line for line in found if line]

    rules = lines("CONTRIBUTING.md", "-")
    assert rules and lines(".github/PULL_REQUEST_TEMPLATE.md", "- [ ]") == rules
    for path in TEMPLATES:
        _, head, text = path.read_text().split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(head).keys()
        assert "- [ ] " in text

"""The documentation site: what is in it, where its links lead, and that it is built."""

import os
import posixpath
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import site_hooks  # noqa: E402

BIN = Path(sys.executable).parent
MKDOCS = shutil.which("mkdocs", path=f"{BIN}:{os.environ['PATH']}")


class Loader(yaml.SafeLoader):
    """Of a mkdocs.yml, the names of Python's functions left out."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
SITE = yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)


def pages_of(nav):
    """The pages of the navigation, in order."""
    for item in nav:
        value = item if isinstance(item, str) else next(iter(item.values()))
        yield from [value] if isinstance(value, str) else pages_of(value)


OWN = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
REFERENCE = site_hooks.reference()


def test_every_page_is_in_the_navigation_once():
    pages = list(pages_of(SITE["nav"]))
    assert len(set(pages)) == len(pages)
    assert set(pages) == OWN | REFERENCE.keys() | set(site_hooks.PAGES.values())


def test_the_reference_has_every_module_once():
    found = re.findall(r"^::: (\S+)$", "\n".join(REFERENCE.values()), re.MULTILINE)
    files = [p for p in (ROOT / "mmvae_jax").rglob("*.py") if p.stem != "__main__"]
    names = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for p in files
    } - {"mmvae_jax"}
    assert len(found) == len(names) and set(found) == names


@pytest.mark.parametrize(
    ("page", "link", "wanted"),
    [
        ("index.md", "[a](docs/models.md#options)", "[a](models.md#options)"),
        ("index.md", "![a](docs/growth.png)", "![a](growth.png)"),
        ("index.md", "[a](CONTRIBUTING.md)", "[a](contributing.md)"),
        ("index.md", "[`a`](tests/conftest.py)", "`a`"),
        ("theory.md", "[a](../datasets/README.md)", "[a](datasets.md)"),
        ("theory.md", "[a](../results/demo.json)", "a"),
        ("theory.md", "[a](models.md)", "[a](models.md)"),
        ("theory.md", "[a](#here)", "[a](#here)"),
        ("theory.md", "[a](https://arxiv.org)", "[a](https://arxiv.org)"),
        ("contributing.md", "[a](docs/adding.md)", "[a](adding.md)"),
    ],
)
def test_links_are_those_of_the_site(page, link, wanted):
    known = OWN | set(site_hooks.PAGES.values()) | {"growth.png"}
    files = SimpleNamespace(get_file_from_path=lambda p: p if p in known else None)
    own = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert site_hooks.on_page_markdown(link, own, None, files) == wanted


@pytest.mark.parametrize(
    ("address", "colab"),
    [
        ("https://github.com/a/b", True),
        ("https://github.com/a/b.git", True),
        ("https://example.org/a/b", False),
        ("", False),
        (None, False),
    ],
)
def test_the_page_of_a_notebook_links_to_it_and_to_colab(address, colab):
    own = SimpleNamespace(file=SimpleNamespace(src_uri="notebooks/sweep.md"))
    files = SimpleNamespace(get_file_from_path=lambda p: p)
    config = {"repo_url": address}
    found = site_hooks.on_page_markdown("# A sweep\n\nText", own, config, files)
    target = f"{site_hooks.COLAB}a/b/blob/main/notebooks/sweep.ipynb"
    assert (f"]({target})" in found) == colab == ("colab" in found)
    assert found.startswith("# A sweep\n\n[") and "](sweep.ipynb)" in found
    assert found.endswith("\n\nText")


def test_equations_are_mathml():
    pytest.importorskip("latex2mathml", reason="the extra docs is not installed")
    marked = '<p><span class="arithmatex">\\(q_A &lt; \\log p\\)</span></p>'
    found = site_hooks.on_page_content(marked, None, None, None)
    assert 'display="inline"' in found and "<mi>q</mi><mi>A</mi>" in found
    assert "<mo>&#x0003C;</mo><mi>log</mi><mspace" in found
    assert found.startswith("<p><math") and found.endswith("</math></p>")
    block = '<div class="arithmatex">\\[\nx\n\\]</div>'
    assert 'display="block"' in site_hooks.on_page_content(block, None, None, None)


def test_the_site_holds_every_notebook(monkeypatch):
    generated = SimpleNamespace(generated=lambda config, page, content: page)
    monkeypatch.setitem(
        sys.modules, "mkdocs.structure.files", SimpleNamespace(File=generated)
    )
    files = site_hooks.on_files([], None)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        assert f"notebooks/{path.name}" in files
        assert f"notebooks/{path.stem}.md" in pages_of(SITE["nav"])


@pytest.mark.slow
@pytest.mark.skipif(MKDOCS is None, reason="the extra docs is not installed")
def test_it_is_built_without_a_warning_and_asks_no_other_server(tmp_path):
    command = [
        MKDOCS,
        "build",
        "--strict",
        "--quiet",
        f"--site-dir={tmp_path / 'site'}",
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    models = (tmp_path / "site" / "models" / "index.html").read_text()
    assert models.count("<math") > 30 and "arithmatex" not in models
    assert len(pages) > len(list(pages_of(SITE["nav"])))
    for page in pages:
        text = page.read_text()
        loaded = re.findall(
            r"<(?:script|img|link|iframe)\b[^>]*?(?:src|href)=\"?([^\" >]+)", text
        )
        assert loaded and not any(
            "//" in posixpath.normpath(x) or x.startswith("http") for x in loaded
        ), page
        assert "fonts.g" not in text and "cdn" not in text.lower(), page

"""Pages of the site that are not in docs/: files of the repository, and the reference.

Links that lead out of the site, to files of the repository, become their text. Pages of
notebooks get links to the notebook itself, and to Colab where mkdocs.yml has the
repository's address on GitHub (`repo_url`). Equations become MathML, which browsers
show without a script.
"""

import html
import posixpath
import re
from pathlib import Path

import mmvae_jax

ROOT = Path(__file__).resolve().parents[1]
# File of the repository -> its page.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "datasets/README.md": "datasets.md",
}
COLAB = "https://colab.research.google.com/github/"
_GITHUB = re.compile(r"https://github\.com/([\w.-]+/[\w.-]+?)(?:\.git)?/?")
_EQUATION = re.compile(
    r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(\s*([^)\s]+)\)")


def reference():
    """Page -> its directives of mkdocstrings: one a room, and one of users' calls."""
    calls = [f"mmvae_jax.interface.{file}" for file in mmvae_jax._CALLS.values()]
    pages = {"calls": list(dict.fromkeys(calls))}
    for path in sorted((ROOT / "mmvae_jax").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name not in ("mmvae_jax", "mmvae_jax.__main__", *calls):
            room = "basis" if path.parent.name == "mmvae_jax" else parts[1]
            pages.setdefault(room, []).append(name)
    return {
        f"api/{room}.md": "\n\n".join(
            [f"# {room.capitalize()}", *(f"::: {name}" for name in names)]
        )
        for room, names in pages.items()
    }


def notebook_links(name, repo_url):
    """Links of the page of a notebook, as Markdown.

    Args:
      name: of its file, without its ending.
      repo_url: of the repository; only those on GitHub can be opened by Colab.
    """
    links = [f"[Download the notebook]({name}.ipynb)"]
    if found := _GITHUB.fullmatch(repo_url or ""):
        target = f"{COLAB}{found[1]}/blob/main/notebooks/{name}.ipynb"
        links.insert(0, f"[Open in Colab]({target})")
    return " · ".join(links)


def on_files(files, config):
    """Adds the pages."""
    from mkdocs.structure.files import File  # the tests read this file without it

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        files.append(File.generated(config, f"notebooks/{path.name}", content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links from those of the repository to those of the site."""
    folder, _, name = page.file.src_uri.removesuffix(".md").rpartition("/")
    if folder == "notebooks":
        title, _, rest = markdown.partition("\n")
        links = notebook_links(name, config.get("repo_url"))
        markdown = f"{title}\n\n{links}\n{rest}"
    sources = {target: source for source, target in PAGES.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def rewritten(link):
        mark, text, target = link.groups()
        path, hash_, anchor = target.partition("#")
        if not path or ":" in path:
            return link[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), path))
        place = PAGES.get(place, place.removeprefix("docs/"))
        if files.get_file_from_path(place) is None:
            return text
        here = posixpath.dirname(page.file.src_uri) or "."
        return f"{mark}[{text}]({posixpath.relpath(place, here)}{hash_}{anchor})"

    return _LINK.sub(rewritten, markdown)


def on_page_content(content, page, config, files):
    """Turns equations, as pymdownx.arithmatex marks them, into MathML."""
    from latex2mathml import converter

    def converted(equation):
        kind, latex = equation.groups()
        display = "block" if kind == "div" else "inline"
        mathml = converter.convert(html.unescape(latex).strip(), display=display)
        # Browsers put no space between a function and its argument.
        return mathml.replace("<mi>log</mi>", '<mi>log</mi><mspace width="0.17em"/>')

    return _EQUATION.sub(converted, content)

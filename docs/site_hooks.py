"""Pages of the site that are not in docs/: files of the repository, and the reference.

Links that lead out of the site, to files of the repository, become their text.
"""

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


def on_files(files, config):
    """Adds the pages."""
    from mkdocs.structure.files import File  # the tests read this file without it

    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    for page, text in reference().items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrites links of a page from those of the repository to those of the site."""
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

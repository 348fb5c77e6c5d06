"""Applies a trained model to new data: a .npz file in, a .npz file out.

    python -m experiments.apply --workdir=runs/tp --member=beta=1 --data=FILE.npz \\
        --what=embed,impute,score --out=OUT.npz

The arrays of FILE.npz have the names of the model's modalities. A modality without an
array is missing; `observed`, bool [N, M], says which others each example has. OUT.npz
holds the results under names such as `embed/mean` and `impute/spread/m0`, captions also
as text, and a copy of the other arrays of FILE.npz, such as labels and ids. --step
reads an earlier checkpoint, if it still exists. --pictures draws samples into
OUT_pictures/, captions also as text.
"""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from PIL import Image

import mmvae_jax
from experiments.running import command, terminal
from mmvae_jax.data import arrays
from mmvae_jax.data.dataset import Split
from mmvae_jax.errors import UsageError
from mmvae_jax.evaluation import pictures, samples
from mmvae_jax.files import file_name
from mmvae_jax.interface import description, trained
from mmvae_jax.types import OBSERVED


def _embed(model: mmvae_jax.Trained, split: Split) -> dict[str, np.ndarray]:
    """q(z | observed modalities), and each part of z by its name."""
    found = mmvae_jax.embed(model, split)
    parts = {
        f"embed/{name}/{field}": values
        for name, _ in found.parts
        if len(found.parts) > 1
        for field, values in zip(
            ("mean", "log_variance"), found.part(name), strict=True
        )
    }
    return {"embed/mean": found.mean, "embed/log_variance": found.log_variance} | parts


def _impute(model: mmvae_jax.Trained, split: Split) -> dict[str, np.ndarray]:
    """Imputed mean, spread and deviation; draws with --keep_draws."""
    settings = flags.FLAGS
    found = mmvae_jax.impute(
        model,
        split,
        num_draws=settings.num_draws,
        key=settings.seed,
        keep_draws=settings.keep_draws,
    )
    fields = found._asdict().items()
    return {f"impute/{field}/{m}": x for field, own in fields for m, x in own.items()}


def _reconstruct(model: mmvae_jax.Trained, split: Split) -> dict[str, np.ndarray]:
    """All modalities, from one draw given the observed modalities."""
    found = mmvae_jax.reconstruct(model, split, key=flags.FLAGS.seed)
    return {f"reconstruct/{m}": x for m, x in found.items()}


def _generate(model: mmvae_jax.Trained, split: Split) -> dict[str, np.ndarray]:
    """Tuples from the prior, as many as examples."""
    found = mmvae_jax.generate(model, split.num_examples, flags.FLAGS.seed)
    return {f"generate/{m}": x for m, x in found.items()}


def _score(model: mmvae_jax.Trained, split: Split) -> dict[str, np.ndarray]:
    """ELBO and log p(x) of the observed modalities."""
    return {f"score/{k}": x for k, x in mmvae_jax.score(model, split)._asdict().items()}


APPLICATIONS: dict[str, Callable[..., dict[str, np.ndarray]]] = {
    "embed": _embed,
    "impute": _impute,
    "reconstruct": _reconstruct,
    "generate": _generate,
    "score": _score,
}


def main() -> None:
    """Reads the data, applies the model and writes the results."""
    given = flags.FLAGS
    for name in given.what:
        if name not in APPLICATIONS:
            known = ", ".join(APPLICATIONS)
            raise UsageError(f"--what has {name!r}; choose from {known}")
    out = Path(given.out).expanduser()
    if not (given.workdir and given.data and given.what and out.suffix == ".npz"):
        raise UsageError("give --workdir, --data=FILE.npz, --what and --out=OUT.npz")
    drawings = out.with_name(f"{out.stem}_pictures")
    command.require_new("--out", out, *([drawings] if given.pictures else []))
    workdir = Path(given.workdir).expanduser()
    model = trained.load(workdir, **member_of(given.member), step=given.step)
    split, others = _read(model, Path(given.data).expanduser())
    found: dict[str, np.ndarray] = {}
    with terminal.steps(len(given.what), "applying") as bar:
        for name in given.what:
            bar.set_postfix_str(name)
            found |= APPLICATIONS[name](model, split)
            bar.update()
    found |= _texts(model, found) | others
    _write(out, found)
    terminal.say(f"{out}: {split.num_examples} examples, {', '.join(found)}")
    if given.pictures:
        _draw(model, split, drawings)
        terminal.say(f"pictures are in {drawings}")


def _read(model: mmvae_jax.Trained, path: Path) -> tuple[Split, dict[str, np.ndarray]]:
    """The modalities of a file, and other arrays to copy; prints their names."""
    held = arrays.read_npz(path)
    for name in held:
        if name.partition("/")[0] in flags.FLAGS.what:
            raise UsageError(
                f"array {name!r} of {path} has the name of a result: rename it"
            )
    known = [m.name for m in model.description.modalities]
    read = {*known, *(f"{m}{description.WORDS}" for m in known), OBSERVED}
    own = {name: x for name, x in held.items() if name in read}
    split = description.to_split(model.description, own)
    others = {name: x for name, x in held.items() if name not in known}
    missing = [m for m in known if not split.is_observed(m).any()]
    for words, names in (("missing", missing), ("carried over", list(others))):
        if names:
            terminal.say(f"{words}: {', '.join(names)}")
    return split, others


def member_of(text: str) -> dict[str, Any]:
    """Converts "beta=1,seed=0" to arguments of `load`."""
    values: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, _, value = part.partition("=")
        try:
            if name not in ("beta", "learning_rate", "seed"):
                raise ValueError
            values[name] = float(value)
        except ValueError:
            raise UsageError(
                f"--member has {part!r}; write beta=1,learning_rate=0.0005,seed=0"
            ) from None
    return values


def _texts(
    model: mmvae_jax.Trained, found: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Results that are tokens, as text."""
    tokens = {m.name: m for m in model.description.modalities if m.words}
    return {
        f"{name}_text": description.to_texts(tokens[name.rpartition("/")[2]], x)
        for name, x in found.items()
        if name.rpartition("/")[2] in tokens and x.ndim == 2 and x.dtype == np.int32
    }


def _draw(model: mmvae_jax.Trained, split: Split, folder: Path) -> None:
    """Draws pictures of samples as in a run, and writes their captions as text.

    A modality that no example has is not a condition.
    """
    words = {m.name: m.words for m in model.description.modalities if m.words}
    key = jax.random.key(flags.FLAGS.seed)
    drawn = samples.draw_samples(model.model, model.params, split, key)
    there = [one for one in drawn.conditional if split.is_observed(one.source).any()]
    shown = (drawn._replace(conditional=there), split, words)
    folder.mkdir()
    for name, grid in pictures.draw_grids(*shown).items():
        image = grid[..., 0] if grid.shape[-1] == 1 else grid
        Image.fromarray(image).save(folder / f"{file_name(name)}.png")
    if captions := pictures.write_captions(*shown):
        (folder / "captions.txt").write_text(captions, encoding="utf-8")


def _write(out: Path, found: dict[str, np.ndarray]) -> None:
    """Writes a .npz file atomically, one array at a time."""
    partial = out.with_suffix(".npz.partial")
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        with zipfile.ZipFile(partial, "w") as archive:
            for name, x in found.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                    np.lib.format.write_array(file, x, allow_pickle=False)
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", "", "folder of a run or of an export")
    flags.DEFINE_string("member", "", "of a sweep, for instance beta=1,seed=0")
    flags.DEFINE_integer("step", None, "of the checkpoint; default: the last")
    flags.DEFINE_string("data", "", "the .npz file of the data")
    flags.DEFINE_list("what", ["embed"], f"of {', '.join(APPLICATIONS)}")
    flags.DEFINE_string("out", "", "the .npz file to write; must not exist")
    flags.DEFINE_integer("num_draws", 20, "draws of what is missing", lower_bound=1)
    flags.DEFINE_boolean("keep_draws", False, "whether each draw is written")
    flags.DEFINE_boolean("pictures", False, "whether samples are drawn, beside OUT")
    flags.DEFINE_integer("seed", 0, "of all draws", lower_bound=0)
    command.run(main)

"""`experiments.apply`: a .npz file in, a .npz file out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import mmvae_jax

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.slow  # commands; the library's tests are fast

N = 11
RNG = np.random.default_rng(0)
DATA = {
    "image": RNG.integers(0, 256, (N, 4, 4, 3)).astype(np.uint8),
    "waves": RNG.normal(size=(N, 3)).astype(np.float32),
    "text": np.array(["a red bird", "two blue birds fly", "red"])[np.arange(N) % 3],
}
OTHERS = {"labels": np.arange(N), "ids": np.array([f"x{i}" for i in range(N)])}
RUN_DATA = {"vector": RNG.normal(size=(N, 4)).astype(np.float32)}  # of array_run
WHAT = ("embed", "impute", "reconstruct", "generate", "score")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An export of a model of three kinds of modalities."""
    trained = mmvae_jax.fit(
        DATA,
        model="dmvae",  # with parts of the latent vector
        num_steps=3,
        latent_dim=3,
        config={
            "modality.network_options.widths": (8,),
            "eval.batch_size": 4,
            "eval.importance_samples": 2,
        },
        is_shown=False,
    )
    return mmvae_jax.export(trained, tmp_path_factory.mktemp("model") / "export")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of data, by name."""
    root = tmp_path_factory.mktemp("data")
    contents = {
        "whole": DATA | OTHERS,
        "text": {"text": DATA["text"]} | OTHERS,
        "result": DATA | {"embed/mean": np.zeros(N)},
        "other_key": {"imgae": DATA["image"]},
        "run": RUN_DATA,
    }
    for name, arrays in contents.items():
        np.savez(root / f"{name}.npz", **arrays)
    return {name: root / f"{name}.npz" for name in contents}


@pytest.fixture(scope="module")
def outcomes(model, files, array_run, commands, tmp_path_factory):
    """name -> (outcome, OUT) of commands that are run at once."""
    root = tmp_path_factory.mktemp("out")
    (root / "taken.npz").write_text("kept")
    (root / "pictured_pictures").mkdir()

    def flags(name, data, *others, out=None, workdir=model):
        out = root / (out or f"{name}.npz")
        given = {"workdir": workdir, "data": files[data], "out": out}
        return [*(f"--{flag}={x}" for flag, x in given.items()), *others], out

    jobs = {
        "all": flags("all", "whole", f"--what={','.join(WHAT)}", "--pictures"),
        "draws": flags("draws", "text", "--what=impute", "--keep_draws", "--pictures"),
        "earlier": flags(
            "earlier", "run", "--member=beta=1", "--step=10", workdir=array_run
        ),
        "no_step": flags(
            "no_step", "run", "--member=beta=1", "--step=7", workdir=array_run
        ),
        "no_such_step": flags("no_such_step", "whole", "--step=7"),
        "taken": flags("taken", "whole"),
        "pictured": flags("pictured", "whole", "--pictures"),
        "below": flags("below", "whole", out="taken.npz/out.npz"),
        "result": flags("result", "result"),
        "other_key": flags("other_key", "other_key"),
        "nothing": flags("nothing", "whole", "--what="),
        "folder": flags("folder", "whole", out="new/below/out.npz"),
    }
    found = commands(
        [(["experiments.apply", *given], "") for given, _ in jobs.values()]
    )
    return {
        name: (outcome, out)
        for (name, (_, out)), outcome in zip(jobs.items(), found, strict=True)
    }


def read(outcomes, name):
    outcome, path = outcomes[name]
    assert outcome.code == 0, outcome.stderr
    with np.load(path, allow_pickle=False) as file:
        return {key: file[key] for key in file.files}


def assert_same(found, expected):
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.asarray(expected).dtype


def test_the_file_holds_what_the_library_returns(outcomes, model):
    found = read(outcomes, "all")
    trained = mmvae_jax.load(model)
    embedding = mmvae_jax.embed(trained, DATA)
    assert_same(found["embed/mean"], embedding.mean)
    assert_same(found["embed/log_variance"], embedding.log_variance)
    for name, _ in embedding.parts:
        assert_same(found[f"embed/{name}/mean"], embedding.part(name)[0])
    scores = mmvae_jax.score(trained, DATA)
    assert_same(found["score/elbo"], scores.elbo)
    assert_same(found["score/log_likelihood"], scores.log_likelihood)
    for m, x in mmvae_jax.reconstruct(trained, DATA).items():
        assert_same(found[f"reconstruct/{m}"], x)
    for m, x in mmvae_jax.generate(trained, N).items():
        assert_same(found[f"generate/{m}"], x)
    assert {name.partition("/")[0] for name in found} == {*WHAT, *OTHERS}


def test_an_earlier_checkpoint_of_a_run(outcomes, array_run):
    found = read(outcomes, "earlier")["embed/mean"]
    last, earlier = (
        mmvae_jax.embed(mmvae_jax.load(array_run, beta=1.0, step=step), RUN_DATA).mean
        for step in (None, 10)
    )
    assert_same(found, earlier)
    assert not np.array_equal(found, last)


def test_what_is_imputed_and_each_draw(outcomes, model):
    found = read(outcomes, "draws")
    expected = mmvae_jax.impute(mmvae_jax.load(model), {"text": DATA["text"]})
    for field, own in expected._asdict().items():
        for m, x in own.items():
            assert_same(found[f"impute/{field}/{m}"], x)
    assert found["impute/draws/image"].shape == (20, N, 4, 4, 3)
    outcome, _ = outcomes["draws"]
    assert "missing: image, waves\ncarried over: labels, ids\n" in outcome.stdout


def test_labels_and_ids_are_carried_over_and_captions_are_text_too(outcomes):
    for name in ("all", "draws"):
        found = read(outcomes, name)
        for key, x in OTHERS.items():
            assert_same(found[key], x)
        assert found["impute/mean/text_text"].tolist() == DATA["text"].tolist()
    assert read(outcomes, "all")["generate/text_text"].dtype.kind == "U"


def test_pictures_of_samples_and_captions(outcomes):
    folder = outcomes["all"][1].with_name("all_pictures")
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {
        "prior",
        "image_given_waves",
        "waves_given_text",
        "text_given_image",
        "traversal",
    }
    for path in folder.glob("*.png"):
        with Image.open(path) as image:
            assert min(image.size) > 1
    text = (folder / "captions.txt").read_text()
    assert "text given image" in text and "a red bird" in text


def test_nothing_is_drawn_given_what_no_example_has(outcomes):
    folder = outcomes["draws"][1].with_name("draws_pictures")
    names = {path.stem for path in folder.glob("*.png")}
    assert names == {"prior", "waves_given_text", "traversal"}
    assert "text given image" not in (folder / "captions.txt").read_text()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("taken", "taken.npz exists; choose another --out"),
        ("pictured", "pictured_pictures exists; choose another --out"),
        ("below", "taken.npz/out.npz is below a file; choose another"),
        ("no_step", "checkpoints has no checkpoint 7, it keeps 10, 20"),
        ("no_such_step", "export holds only step 3, not 7"),
        ("result", "has the name of a result: rename it"),
        ("other_key", "the data have none of the modalities image, waves, text"),
        ("nothing", "give --workdir, --data=FILE.npz, --what and --out=OUT.npz"),
    ],
)
def test_mistakes_are_one_line_and_nothing_is_written(outcomes, name, line):
    outcome, out = outcomes[name]
    assert outcome.code == 2
    (said,) = [x for x in outcome.stderr.splitlines() if "error" in x]
    assert line in said
    if name == "taken":
        assert out.read_text() == "kept"
    else:
        assert not out.exists()


def test_folders_are_made_and_nothing_partial_is_left(outcomes):
    read(outcomes, "folder")
    root = outcomes["all"][1].parent
    assert not list(root.rglob("*.partial"))


MEASURE = """
import json, resource, runpy, sys
sys.argv = ["experiments.apply", *sys.argv[1:]]
try:
    runpy.run_module("experiments.apply", run_name="__main__", alter_sys=True)
except SystemExit as stop:
    assert not stop.code
print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))
"""


@pytest.mark.slow
def test_a_million_rows_need_the_memory_of_a_batch_beside_input_and_output(
    tmp_path,
):
    """Peak resident memory of whole processes, that of few rows subtracted."""
    rng = np.random.default_rng(0)

    def arrays(num):
        return {
            "image": rng.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8),
            "vector": rng.normal(size=(num, 4)).astype(np.float32),
        }

    trained = mmvae_jax.fit(
        arrays(60),
        num_steps=2,
        latent_dim=4,
        config={"modality.network_options.widths": (16,)},
        is_shown=False,
    )
    model = mmvae_jax.export(trained, tmp_path / "model")
    peaks, sizes = {}, {}
    for num in (2_000, 1_000_000):
        data, out = (tmp_path / f"{num}_{name}.npz" for name in ("data", "out"))
        np.savez(data, ids=np.arange(num), **arrays(num))
        done = subprocess.run(
            [
                *(sys.executable, "-c", MEASURE, f"--workdir={model}"),
                *(f"--data={data}", f"--out={out}", "--what=embed,score"),
            ],
            capture_output=True,
            text=True,
            cwd=Path(__file__).parents[2],
            timeout=1800,
        )
        assert done.returncode == 0, done.stderr
        peaks[num] = json.loads(done.stdout.splitlines()[-1]) << 10
        sizes[num] = data.stat().st_size + out.stat().st_size
        with np.load(out) as found:
            assert found["embed/mean"].shape == (num, 4)
            assert found["ids"][-1] == num - 1
    more = peaks[1_000_000] - peaks[2_000]
    # The ids are in both files, and in memory once.
    assert more < sizes[1_000_000] + (64 << 20), (peaks, sizes)

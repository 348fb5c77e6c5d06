"""metrics.jsonl and summary.json are valid JSON whatever happens."""

import json
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image
from tensorboardX import summary

from mmvae_jax.evaluation.metric import Undefined
from mmvae_jax.training import log, sinks
from mmvae_jax.training.sweep import Member

MEMBERS = [Member(0.5, 1e-3, 0), Member(2.0, 1e-3, 1)]


def write(workdir, step, *entries, members=MEMBERS):
    """Opens a writer at `step` and writes (step, value of every member)."""
    writer = log.RunWriter(workdir, members, step)
    for at, values in entries:
        writer.write_scalars(at, [{"train/loss": value} for value in values])
    writer.close()


def losses(workdir):
    lines = log.read_metrics(workdir / "metrics.jsonl")
    return [(line["step"], line["member"], line["train/loss"]) for line in lines]


def test_lines(tmp_path):
    write(tmp_path, 0, (4, (1.5, 2.5)))
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "step": 4,
            "member": k,
            "beta": member.beta,
            "learning_rate": member.learning_rate,
            "seed": member.seed,
            "train/loss": 1.5 + k,
        }
        for k, member in enumerate(MEMBERS)
    ]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, np.float32("nan")])
def test_what_is_not_finite_is_null(value, tmp_path):
    write(tmp_path, 0, (1, (value, 1.0)))
    text = (tmp_path / "metrics.jsonl").read_text()
    assert '"train/loss": null' in text
    assert losses(tmp_path) == [(1, 0, None), (1, 1, 1.0)]


def test_why_a_value_is_nan_is_in_its_line(tmp_path):
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    values = {"eval/a": Undefined("no test example has m0"), "eval/b": 1.0}
    writer.write_scalars(1, [values, {"eval/a": 1.0}])
    writer.close()
    first, second = log.read_metrics(tmp_path / "metrics.jsonl")
    assert (first["eval/a"], first["eval/b"]) == (None, 1.0)
    assert first["undefined"] == {"eval/a": "no test example has m0"}
    assert "undefined" not in second


@pytest.mark.filterwarnings("ignore")
def test_lines_are_on_the_disk_at_once(tmp_path):
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    writer.write_scalars(1, [{"a": 1.0}, {"a": 2.0}])
    assert len(log.read_metrics(tmp_path / "metrics.jsonl")) == 2
    writer.close()


@pytest.mark.parametrize("torn", ['{"step": 3, "mem', "{", '{"step": 3}'[:-1]])
def test_a_torn_line_is_dropped(torn, tmp_path):
    write(tmp_path, 0, (1, (1.0, 2.0)), (2, (3.0, 4.0)))
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + torn)
    assert len(losses(tmp_path)) == 4
    write(tmp_path, 2, (3, (5.0, 6.0)))
    assert [entry[2] for entry in losses(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert len(path.read_text().splitlines()) == 6


def test_lines_beyond_the_resumed_step_are_dropped(tmp_path):
    write(tmp_path, 0, *((step, (step, step)) for step in (1, 2, 3, 4)))
    write(tmp_path, 2, (3, (30, 30)))
    assert losses(tmp_path) == [
        (step, k, value) for step, value in ((1, 1), (2, 2), (3, 30)) for k in (0, 1)
    ]


def test_a_new_run_starts_with_no_line(tmp_path):
    write(tmp_path, 0, (1, (1, 1)))
    write(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_evaluations_of_the_resumed_step_are_dropped(tmp_path):
    # It may have been cut off between two members, and will be made again.
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    for step in (2, 4):
        writer.write_scalars(step, [{"train/loss": 1.0}] * 2)
        writer.write_scalars(step, [{"eval/elbo": -1.0}] * 2)
    writer.close()
    log.RunWriter(tmp_path, MEMBERS, 4).close()
    lines = log.read_metrics(tmp_path / "metrics.jsonl")
    assert [(x["step"], "eval/elbo" in x) for x in lines] == [
        (2, False),
        (2, False),
        (2, True),
        (2, True),
        (4, False),
        (4, False),
    ]


def test_values_keep_their_bits(tmp_path):
    values = [1 / 3, 1e-300, float(np.float32(0.1)), 12345678.9]
    write(tmp_path, 0, *((i + 1, (v, v)) for i, v in enumerate(values)))
    write(tmp_path, 4)
    assert [entry[2] for entry in losses(tmp_path)][::2] == values


def test_read_metrics_without_a_file(tmp_path):
    assert log.read_metrics(tmp_path / "metrics.jsonl") == []


def test_images(tmp_path):
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    colours = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    writer.write_images(1, 0, {"prior": colours, "grey": colours[..., :1]})
    writer.close()
    folder = tmp_path / "samples"
    with Image.open(folder / "beta=0.5,seed=0_prior.png") as image:
        assert (np.asarray(image) == colours).all()
    with Image.open(folder / "beta=0.5,seed=0_grey.png") as image:
        assert image.mode == "L" and (np.asarray(image) == colours[..., 0]).all()


def test_texts(tmp_path):
    writer = log.RunWriter(tmp_path, MEMBERS, 0)
    writer.write_texts(1, 1, {"captions": "a bird <exc>\n\u201cof\u201d birds\n"})
    writer.close()
    path = tmp_path / "samples" / "beta=2,seed=1_captions.txt"
    assert path.read_text(encoding="utf-8") == "a bird <exc>\n\u201cof\u201d birds\n"
    boards = (tmp_path / "tensorboard" / "beta=2,seed=1").iterdir()
    # In a block of code, in which Markdown leaves "<" alone.
    assert any(b"```\na bird <exc>\n" in path.read_bytes() for path in boards)


def test_write_json_is_all_or_nothing(tmp_path):
    path = tmp_path / "summary.json"
    log.write_json(path, {"a": (1, np.float32(2)), "b": float("nan")})
    assert json.loads(path.read_text()) == {"a": [1, 2.0], "b": None}
    before = path.read_bytes()
    with pytest.raises(TypeError):
        log.write_json(path, {"a": 1, "b": object()})
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (np.int64(3), 3),
        (np.bool_(True), True),
        ((1, (2.0, float("inf"))), [1, [2.0, None]]),
        ({"a": {"b": np.nan}}, {"a": {"b": None}}),
        (np.array(1.5), 1.5),
        ("nan", "nan"),
    ],
)
def test_jsonable(value, wanted):
    found = log.jsonable(value)
    assert found == wanted
    assert json.loads(json.dumps(found, allow_nan=False)) == wanted


def test_member_names_tell_members_apart():
    assert log.member_name(MEMBERS[0], MEMBERS) == "beta=0.5,seed=0"
    rates = [Member(1.0, 1e-3, 0), Member(1.0, 5e-4, 0)]
    assert [log.member_name(member, rates) for member in rates] == [
        "beta=1,seed=0,learning_rate=0.001",
        "beta=1,seed=0,learning_rate=0.0005",
    ]


def test_member_names_of_close_values_differ():
    close = [Member(1.0, 1e-3, 0), Member(1.0000001, 1e-3, 0)]
    first, second = (log.member_name(member, close) for member in close)
    assert first != second


NAMES = (
    *("a b", "a_b", "a/b", "..", "/", "日本é", "<b>", 'it\'s "q"', "%s%2F", "{}{0}"),
    *("", "a.b", "*?[", "line\nline", "x" * 300, "x" * 301, "$x$"),
)


def test_names_of_modalities_are_safe_in_files_and_tags(tmp_path):
    picture = np.zeros((2, 2, 3), np.uint8)
    images = {f"{name}_given_{name}": picture for name in NAMES}
    (tmp_path / "run").mkdir()
    writer = log.RunWriter(tmp_path / "run", MEMBERS[:1], 0)
    writer.write_images(1, 0, images)
    writer.write_scalars(1, [{f"eval/swd/{name}": 1.0 for name in NAMES}])
    writer.close()
    assert sorted(x.name for x in tmp_path.iterdir()) == ["run"]
    folders = {x.name for x in (tmp_path / "run").iterdir()}
    assert folders == {"metrics.jsonl", "samples", "tensorboard"}
    files = [x.name for x in (tmp_path / "run" / "samples").iterdir()]
    assert len(files) == len(NAMES) and max(map(len, files)) < 255
    short = [f"{name}_given_{name}" for name in NAMES if len(name) < 300]
    found = {unquote(x.removesuffix(".png").partition("seed=0_")[2]) for x in files}
    assert set(short) <= found
    tags = {sinks.tag_of(name) for name in images}
    assert len({summary._clean_tag(tag) for tag in tags}) == len(NAMES)


def test_nan_is_no_warning_of_a_library(tmp_path, caplog):
    write(tmp_path, 0, (1, (np.nan, 1.0)))
    assert not caplog.records

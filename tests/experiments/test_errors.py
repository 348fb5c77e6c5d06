"""Mistakes of the user, made with the user's command: one line and an exit code."""

import fcntl
import gzip
import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import malformed
import numpy as np
import pytest
from PIL import Image

from experiments.running import datasets

pytest_plugins = ("run_fixtures",)

OFFICIAL = "--config=configs/smoke.py:mmvae_official --config.model.options"
ARRAYS = "--config=configs/arrays.py --config.data.path="
DIGITS = (
    "--config.data.digits=mnist --config.data.image_size=16 --config.data.digits_dir="
)
PICTURES = "--config.data.backgrounds_dir="
PUBLISHED = "--config.data.digits=published --config.data.published_dir="
BIRDS = "--config=configs/cub.py --config.data.cub_dir="
WEIGHTS = "--config.eval.metrics=('fid',) --config.eval.inception_weights="
# flags -> what the line must say. {name} is a path of `places`.
USAGE = {
    # Flags and config files.
    "--wrokdir=x": "wrokdir",
    "--config=configs/nothing.py": "configs/nothing.py",
    "--config=configs/smoke.py:mopoe,net=conv": "unknown config argument 'net=conv'",
    "stray": "unexpected argument 'stray'",
    "--config.modle.name=mvae": "no field .*modle",
    "--config.train.num_step=3": "no field .*num_step",
    "--config.modality.network_options.channels=(8,)": "network_options.channels is no "
    "field of this config: a config file may add it",
    "--config.modalities.m0.network=conv": "modalities.m0.network is no field of this",
    "--config.train.num_steps=many": "num_steps.*many",
    "--config.train.num_steps=1.5": "num_steps.*1.5",
    "--config.train.precision=half": "unknown config.train.precision 'half'; choose",
    "--config.train.precision=bfloat16": "'bfloat16': a cpu computes no",
    "--config.train.clip_norm=-1.": "config.train.clip_norm must be >= 0, got -1.0",
    "--config.data.missing=1.0": r"config.data.missing must be in \[0, 1\), got 1.0",
    "--config.data.name=arrays": "needs config.data.path; start from configs/arrays",
    "--config.data.repeated=perhaps": "repeated.*perhaps",
    # The model and its parts.
    "--config.model.name=vae": "unknown model 'vae'.*unimodal.*mopoe",
    # Said before data are prepared, which are not there.
    "--config=configs/polymnist.py:mopeo": "unknown model 'mopeo'.*unimodal.*mopoe",
    "--config.model.latent_dim=0": "latent_dim must be >= 1, got 0",
    "--config=configs/smoke.py:unimodal --config.model.latent_dim=1": "latent_dim = 1",
    "--config.model.options.prior_expert=some": "options.prior_expert 'some'",
    "--config.model.options.subset_estimator=all": "subset_estimator 'all'",
    f"{OFFICIAL}.num_samples=0": "options.num_samples must be >= 1, got 0",
    f"{OFFICIAL}.form=loos": "options.form 'loos'; choose .*loose, tight",
    f"{OFFICIAL}.estimator=stl": "options.estimator 'stl'.*dreg, iwae",
    f"{OFFICIAL}.posterior=normal": "posterior 'normal'.*laplace, gaussian",
    # An option of another model, the model alone, and a misspelt option.
    "--config.model.options.alpha=0.5": (
        "alpha is no option of the model 'mopoe', which reads prior_expert, subset_"
    ),
    "--config=configs/smoke.py:telbo --config.model.options.alpha=1.": (
        "options.alpha is no option of the model 'telbo', which reads decoder_grad"
    ),
    "--config.model.name=mvtcae": "'mvtcae', which reads alpha; .*=FILE.py:mvtcae$",
    "--config.model.options.prior_exper=paper": "prior_exper is no option of .*mopoe",
    "--config=configs/smoke.py:mvtcae --config.model.options.alpha=2.": (
        r"config.model.options.alpha must be in \[0, 1\], got 2.0"
    ),
    "--config.modality.network=vit": "unknown network 'vit'.*mlp",
    "--config.modality.network=transformer": "'transformer' is for tokens, got shape",
    "--config.modality.network=conv": "network 'conv'.*widths",
    "--config.modality.likelihood=categorical": "'categorical' of m0 is for int",
    "--config.modality.network_options.widths=(0,)": "layers need >= 1 unit",
    "--config.model.options.subsets=((0,),)": "subsets is no option of .*'mopoe'",
    "--config.sweep.beta=('a',)": "sweep.beta",
    "--config.data.digits_dir=somewhere": "digits_dir is for .*but that is .sklearn",
    "--config.modality.likelihood=cauchy": "unknown likelihood 'cauchy'.*laplace",
    "--config.modality.likelihood=poisson": "m0 is uint8, for laplace, gaussian",
    "--config.modality.library_size=-1.": "library_size must be >= 0 and finite, got",
    "--config.train.beta_warmup_steps=-1": "config.train.beta_warmup_steps must be in",
    "--config.train.learning_rate_schedule=step": "unknown config.train.learning_rate_",
    "--config.modality.likelihood_scale=0.": "scale must be > 0, got 0",
    # Subsets and weights.
    "--config=configs/smoke.py:custom": "no subsets are given",
    "--config=configs/smoke.py:custom --config.model.options.subsets=((0,),(0,1)) "
    "--config.model.options.subset_weights=(0.5,0.6)": "sum to 1, got .0.5, 0.6.",
    "--config=configs/smoke.py:custom --config.model.options.subsets=((0,),(0,1)) "
    "--config.model.options.subset_weights=(1.5,-0.5)": ">= 0",
    "--config=configs/smoke.py:custom --config.model.options.subsets=((0,),())": (
        "1 is empty"
    ),
    "--config=configs/smoke.py:custom --config.model.options.subsets=((0,),(2,))": (
        "no modality 2"
    ),
    "--config=configs/smoke.py:custom --config.model.options.subsets=((0,),(0,))": (
        "twice"
    ),
    # The sweep.
    "--config.sweep.beta=(-1.,)": "sweep.beta must be >= 0 and finite, got -1",
    "--config.sweep.beta=(1e999,)": "sweep.beta must be >= 0 and finite, got inf",
    "--config.sweep.beta=()": "sweep.beta is empty",
    "--config.sweep.beta=(1.,1.)": "sweep.beta repeats",
    "--config.sweep.learning_rate=(0.,)": "learning_rate must be > 0",
    "--config.sweep.seed=(-1,)": "sweep.seed must be an integer >= 0",
    # Training, classifiers and evaluation.
    "--config.train.mapping=pmap": "unknown config.train.mapping 'pmap'.*vmap",
    "--config.train.batch_size=100000": "batch_size=100000 does not fit 1433",
    "--config.train.batch_size=0": "train.batch_size must be >= 1, got 0",
    "--config.train.num_steps=0": "train.num_steps must be >= 1, got 0",
    "--config.train.checkpoints_kept=0": "checkpoints_kept must be >= 1",
    "--config.data.seed=-1": "config.data.seed must be >= 0, got -1",
    "--config.train.data_seed=-1": "data_seed must be >= 0, got -1",
    "--config.classifier.network=svm": "unknown config.classifier.network 'svm'",
    "--config.classifier.num_steps=0": "classifier.num_steps must be >= 1",
    "--config.eval.metrics=('psnr',)": "unknown metric 'psnr'.*frechet",
    "--config.eval.proposal=prior": "unknown config.eval.proposal 'prior'.*mixture",
    "--config.eval.seed=-1": "eval.seed must be >= 0",
    # The data.
    "--config.data.name=mnist": "config.data.name='mnist' is unknown.*polymnist",
    "--config.data.digits=svhn": "config.data.digits='svhn'",
    "--config.data.image_size=4": "image_size=4 must be in",
    "--config.data.data_dir={a_file}": "data_dir",
    "--config.data.backgrounds_dir={one_background}": "background",
    "--config.data.digits=mnist --config.data.digits_dir={truncated}": (
        "train-images-idx3-ubyte"
    ),
    "--config.data.digits=mnist --config.data.digits_dir={empty}": "idx",
    "--config.data.digits=published --config.data.published_dir={unlike_labels}": (
        "label"
    ),
    "--config.data.digits=mnist": "cannot be downloaded .*config.data.digits_dir",
    # The working directory; each of these exists before.
    "--workdir={a_file}": "is not a folder",
    "--workdir={a_file}/run": "is not a folder",
    "--workdir={foreign}": "holds files, but no run",
    "--workdir={run} --config.model.latent_dim=5": (
        "another config: config.model.latent_dim is 4 there and 5 here"
    ),
    "--workdir={run} --config=configs/smoke.py:mvae --config.train.num_steps=30": (
        r"another config: config.model.name is mopoe there and mvae here; choose"
    ),
    "--workdir={corrupt_config}": r"config.json is no JSON",
    "--workdir={corrupt_summary}": r"summary.json is no JSON",
    "--workdir={other_summary}": r"summary.json is no summary",
    "--workdir={claimed}": "another process is running in",
    "--workdir={other_shape} --config.model.latent_dim=6": (
        "checkpoint 24 .* is of another shape: .* choose another --workdir"
    ),
    "--workdir={no_checkpoint}": "none of the checkpoints in .* could be read",
    # Config files.
    "--config={config_raises.py}": "of the config second line",
    "--config={config_none.py}": "the config has no field .*NoneType",
    "--config={config_dict.py}": "returns dict, not a ConfigDict",
    "--config={config_exits.py}": "the config file ends the program",
    "--config={config_nothing.py}": "no attribute 'get_config'",
    "--config={config_syntax.py}": "config_syntax.py, line 1",
    "--config={config_bytes.py}": "null bytes",
    "--config={config_endless.py}": "maximum recursion depth",
    "--config={config_partial.py}": "the config has no field 'data'",
    "--config={config_section.py}": "no field 'batch_size'; start from",
    "--config={empty}": "Is a directory",
    "--config=": "Path to config file is an empty string",
    "--config.modality.network_options.widths=abc": "layers need >= 1 unit",
    # Arrays of the user's own.
    f"{ARRAYS}{{npz_lengths.npz}}": ("equally many examples.*5 of vector"),
    f"{ARRAYS}{{npz_no_modality.npz}}": ("holds no modality"),
    f"{ARRAYS}{{npz_objects.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_strings.npz}}": ("vector is <U1"),
    f"{ARRAYS}{{npz_complex.npz}}": ("vector is complex64"),
    f"{ARRAYS}{{npz_not_a_number.npz}}": ("vector holds NaN"),
    f"{ARRAYS}{{npz_negative_tokens.npz}}": ("tokens and counts are >= 0"),
    f"{ARRAYS}{{npz_few_words.npz}}": ("only 2 words"),
    f"{ARRAYS}{{npz_words_of_nothing.npz}}": ("image_words belongs to no"),
    f"{ARRAYS}{{npz_short_labels.npz}}": (r"labels must be integers \(20,\)"),
    f"{ARRAYS}{{npz_float_labels.npz}}": ("labels must be integers"),
    f"{ARRAYS}{{npz_negative_labels.npz}}": ("classes 0, 1, .*-1 to 2"),
    f"{ARRAYS}{{npz_many_labels.npz}}": ("classes 0, 1, "),
    f"{ARRAYS}{{npz_narrow_mask.npz}}": (r"observed must be bool \(20, 3\)"),
    f"{ARRAYS}{{npz_mask_of_numbers.npz}}": ("observed must be bool"),
    f"{ARRAYS}{{npz_mask_of_nothing.npz}}": ("has no observed modality"),
    f"{ARRAYS}{{npz_cut.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_text.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_nothing.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_flipped.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_pickle.npz}}": ("is not a .npz file"),
    f"{ARRAYS}{{npz_terabytes.npz}}": ("m0.npy holds less than its header says"),
    f"{ARRAYS}{{npz_bzip2.npz}}": ("m0.npy is packed in an unknown way"),
    f"{ARRAYS}{{npz_bomb.npz}}": ("unpacks to [0-9]+ bytes, [0-9]+ is the limit"),
    "--config=configs/arrays.py --config.data.path={good.npz} "
    "--config.data.test_path={npz_no_modality.npz}": "holds no modality",
    # Digits, pictures, archives and captions.
    f"{DIGITS}{{idx_announces}}": "announces [0-9]+ bytes of data but the file has 100",
    f"{DIGITS}{{idx_huge}}": "impossible shape",
    f"{DIGITS}{{idx_floats}}": "0x0d is not 0x08",
    f"{DIGITS}{{idx_swapped}}": "1 dimensions where 3",
    f"{DIGITS}{{idx_few_labels}}": "100 images but .* 99 labels",
    f"{DIGITS}{{idx_eleven}}": "label 10 is not a digit",
    f"{DIGITS}{{idx_unnamed}}": "that gzip has compressed; add .gz to its name",
    f"{DIGITS}{{idx_zero}}": "impossible shape",
    f"{DIGITS}{{idx_wide}}": "too many to be resized",
    f"{DIGITS}{{idx_bomb}}": "78400 bytes of data but the file has more",
    f"{PICTURES}{{picture_cut}}": "1.png: not a readable image",
    f"{PICTURES}{{picture_text}}": "1.png: not a readable image",
    f"{PICTURES}{{picture_none}}": "1.png: not a readable image",
    f"{PICTURES}{{picture_bomb}}": "9000x9000 pixels are more than the 64000000",
    f"{PICTURES}{{picture_zero}}": "1.png: ",
    f"{PICTURES}{{picture_program}}": "1.png: not a readable image",
    f"{PICTURES}{{picture_floats}}": "1.png: its values are signed, .* .mode F",
    f"{PICTURES}{{picture_transparent}}": "1.png: has transparent pixels .mode RGBA",
    f"{PUBLISHED}{{published_cut}}": "2.2.png: not a readable image",
    f"{PUBLISHED}{{published_size}}": "40x40 pixels where 8x8",
    f"{PUBLISHED}{{published_name}}": "two.png is not named",
    f"{PUBLISHED}{{published_pipe}}": "2.2.png is not a file",
    f"{BIRDS}{{cub_outside}}": "'../outside.txt' would leave the folder",
    f"{BIRDS}{{cub_absolute}}": "'/tmp/outside.txt' would leave",
    f"{BIRDS}{{cub_link}}": "is a link or a folder",
    f"{BIRDS}{{cub_cut}}": "cannot be read to its end",
    f"{BIRDS}{{cub_bomb}}": "unpacks to more than",
    f"{BIRDS}{{cub_not_utf8}}": "line 1 is not a record",
    f"{BIRDS}{{cub_no_captions}}": "image 1 .*has no captions",
    f"{BIRDS}{{cub_few_captions}}": "1 captions where 10",
    f"{BIRDS}{{cub_nul}}": "line 1 is not a record",
    f"{BIRDS}{{cub_infinite}}": "line 1 is not a record",
    f"{BIRDS}{{cub_deep}}": "line 1 is not a record",
    f"{BIRDS}{{cub_captions_bomb}}": "unpacks to more than 67108864 bytes",
    f"{BIRDS}{{cub_class}}": "class 0 is not in 1..200",
    # Prepared data, working directories, checkpoints and weights.
    "--config.data.data_dir={prepared_module}": "names antigravity.Tensor",
    "--config.data.data_dir={prepared_json}": "is damaged|cannot be read",
    "--config.data.data_dir={prepared_deep}": "is damaged|cannot be read",
    "--config.data.data_dir={prepared_count}": "is damaged|cannot be read",
    "--config.data.data_dir={prepared_info}": "is damaged|cannot be read",
    "--workdir={run_deep}": "config.json is no JSON",
    "--workdir={run_nested}": "another config: ",
    "--workdir={run_not_utf8}": "config.json is no JSON",
    "--workdir={run_list}": "another config: ",
    "--workdir={run_members}": "summary.json is no summary",
    "--workdir={run_strings}": "summary.json is no summary",
    "--workdir={run_folder}": "config.json is no JSON",
    "--workdir={run_version}": "none of the checkpoints in .* could be read",
    "--workdir={run_log}": "metrics.jsonl: line 1 is not of the log of a run",
    "--workdir={run_metadata}": "none of the checkpoints in .* could be read",
    f"{WEIGHTS}{{weights_text.pth}}": "is not the published .*sha256 begins",
    f"{WEIGHTS}{{weights_attack.pth}}": "is not the published .*sha256 begins",
    f"{WEIGHTS}{{empty}}": "cannot read the Inception weights .*it is no file",
    f"{WEIGHTS}nothing.pth": "cannot read the Inception weights nothing.pth",
}
# Of commands on trained runs: the command's name, then its flags.
APPLY = "apply --workdir={run} --member=beta=1 --data="
EVALUATE = "evaluate --workdir="
EXPORT = "export --workdir="
COMMANDS = {
    "apply --data={good.npz} --out=out.npz": "give --workdir, --data=FILE.npz",
    f"{APPLY}{{good.npz}} --out={{a_file}}": "and --out=OUT.npz",
    f"{APPLY}{{good.npz}} --out={{good.npz}}": "good.npz exists; choose another --out",
    f"{APPLY}{{good.npz}} --out={{a_file}}/out.npz": "a_file/out.npz is below a file",
    f"{APPLY}{{good.npz}} --out=out.npz --what=embbed": "--what has 'embbed'; choose",
    f"{APPLY}{{good.npz}} --out=out.npz --num_draws=0": "num_draws",
    f"{APPLY}{{good.npz}} --out=out.npz": "none of the modalities m0, m1",
    f"{APPLY}{{npz_cut.npz}} --out=out.npz": "is not a .npz file",
    f"{APPLY}{{fit_shape.npz}} --out=out.npz": (
        r"m0 is uint8 \(2, 4, 4, 3\), .* images uint8 \[N, 8, 8, 3\]"
    ),
    f"{APPLY}{{fit_kind.npz}} --out=out.npz": "m0 is float64 .* images uint8",
    f"{APPLY}{{fit_number.npz}} --out=out.npz": "equally many examples, got 2 of m0, 3",
    f"{APPLY}{{fit_mask.npz}} --out=out.npz": "observed must be bool .2, 2.",
    f"{APPLY}{{fit_result.npz}} --out=out.npz": "'embed/mean' of .* has the name",
    "apply --workdir={run} --data={good.npz} --out=out.npz": "has 3 members; choose",
    "apply --workdir={run} --member=beta=7 --data={good.npz} --out=out.npz": (
        "has no member with beta=7; choose one of: beta=0, "
    ),
    "apply --workdir={run} --member=beta --data={good.npz} --out=out.npz": (
        "--member has 'beta'; write beta=1"
    ),
    "apply --workdir={empty} --data={good.npz} --out=out.npz": "holds no run",
    "apply --workdir={no_steps} --member=beta=1 --data={good.npz} --out=out.npz": (
        "holds no checkpoint yet"
    ),
    "apply --workdir={run_fields} --member=beta=1 --data={good.npz} --out=out.npz": (
        "another version of mmvae_jax: it has the field config.train.speed"
    ),
    "apply --workdir={corrupt_config} --data={good.npz} --out=out.npz": (
        "config.json cannot be read"
    ),
    EVALUATE: "give --workdir=FOLDER of a run, or --all=FOLDER",
    f"{EVALUATE}{{empty}}": "holds no run",
    "evaluate --all={empty}": "no run in",
    f"{EVALUATE}{{run}} --config.train.num_steps=3": "cannot be changed after training",
    f"{EVALUATE}{{run}} --config.eval.metrics=('sdw',)": "unknown metric 'sdw'",
    f"{EVALUATE}{{run}} --config.eval.metrics=('captions',)": "captions",
    f"{EVALUATE}{{run}} --step=7": "has no checkpoint 7, it keeps 18, 24",
    f"{EVALUATE}{{run_fields}}": "it has the field config.train.speed",
    f"{EVALUATE}{{no_steps}}": "holds no checkpoint yet",
    f"{EVALUATE}{{claimed}}": "another process is running in",
    EXPORT: "give --workdir of a run and --out=DIR",
    f"{EXPORT}{{run}} --member=beta=1 --out={{empty}}": "empty exists; choose another",
    f"{EXPORT}{{run}} --member=beta=1 --out={{a_file}}/x": "a_file/x is below a file",
    f"{EXPORT}{{run}} --out=exported": "has 3 members; choose one of",
    f"{EXPORT}{{no_steps}} --member=beta=1 --out=exported": "holds no checkpoint yet",
    f"{EXPORT}{{run_export}} --out=exported": "damaged export",
    f"{EXPORT}{{run}} --member=beta=1 --out=exported --push=model": "called USER/NAME",
}
USAGE |= COMMANDS
# What is wrong -> flags of which it is; the first that fits.
KINDS = {
    "working directories, their JSON, logs and checkpoints": "--workdir={",
    "prepared data": "data_dir={",
    "`.npz` files: arrays, labels, masks": "configs/arrays.py",
    "MNIST's idx files": "digits_dir={",
    "pictures": "backgrounds_dir=|published_dir=",
    "CUB: archives, links, captions": "cub_dir=",
    "Inception weights": "inception_weights=",
    "commands on trained runs": "^(apply|evaluate|export) ",
    "config files": "--config={|--config=$|nothing.py",
    "flags and fields of configs": "",
}
# Those of the fast tests, of every kind of input. The
# others are slow; checks of fields are also tested one by one, in test_checks.py.
FAST = re.compile(
    "wrokdir|modle|mopeo|likelihood=poisson|metrics=.*psnr|{a_file}/run|{foreign}"
    "|{claimed}|{config_raises.py}|{npz_(lengths|bomb).npz}|{idx_huge}|{picture_bomb}"
    "|{published_size}|{cub_cut}|{prepared_module}|{run_members}|{weights_attack.pth}"
    "|^apply --workdir={run} --member=beta=1.*fit_shape|^evaluate.*({empty}$|step=7)"
    "|^export.*run_export"
)
SLOW = pytest.mark.slow
SECONDS = 5  # of the processors, without the imports
MEGABYTES = 300  # more than the same command needs to refuse a flag
NO_NETWORK = """
import socket
def refuse(*arguments, **options):
    raise OSError("no network")
socket.getaddrinfo = socket.create_connection = refuse
"""
FULL = """
import errno, os
from mmvae_jax.training import checkpoints, log
def full(*arguments, **options):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "where")
"""
FAILURES = {
    "metrics": FULL + "log.RunWriter.write_scalars = full",
    "images": FULL + "log.RunWriter.write_images = full",
    "checkpoint": FULL + "checkpoints.save = full",
    "config": FULL + "log.write_json = full",
    "data": FULL
    + """
from polymnist import polymnist_dataset_builder as module
module.Builder._generate_examples = full
""",
}


FAST_FAILURES = ("checkpoint", "data")


@pytest.fixture(scope="module")
def places(finished, smoke_config, tmp_path_factory):
    """Folders and files of users who make mistakes."""
    root = tmp_path_factory.mktemp("places")
    (root / "a_file").write_text("kept")
    for name in ("empty", "one_background", "truncated", "foreign"):
        (root / name).mkdir()
    (root / "foreign" / "thesis.tex").write_text("kept")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "one_background" / "0.jpg")
    for split, num in (("train", 100), ("t10k", 20)):
        images = struct.pack(">4I", 2051, num, 28, 28) + bytes(28 * 28 * num)
        labels = struct.pack(">2I", 2049, num) + bytes(num)
        if split == "train":
            images = images[:-50]
        folder = root / "truncated"
        name = f"{split}-images-idx3-ubyte.gz"
        (folder / name).write_bytes(gzip.compress(images))
        name = f"{split}-labels-idx1-ubyte.gz"
        (folder / name).write_bytes(gzip.compress(labels))
    for split in ("train", "test"):
        for m in range(2):
            folder = root / "unlike_labels" / split / f"m{m}"
            folder.mkdir(parents=True)
            for n in range(4):
                Image.fromarray(noise[:8, :8]).save(folder / f"{n}.{n + m}.png")
    for name in (
        "run",
        "corrupt_config",
        "corrupt_summary",
        "other_summary",
        "claimed",
        "other_shape",
        "no_checkpoint",
        "no_steps",
        "run_fields",
    ):
        shutil.copytree(finished.workdir, root / name)
    shutil.rmtree(root / "no_steps" / "checkpoints")
    for name in ("no_steps", "run_fields"):
        (root / name / "summary.json").unlink()
    path = root / "run_fields" / "config.json"
    config = json.loads(path.read_text())
    config["train"]["speed"] = 3
    path.write_text(json.dumps(config))
    (root / "run_export").mkdir()
    (root / "run_export" / "export.json").write_text('{"format": 1}')
    images = noise[None, :8, :8].repeat(2, axis=0)
    for name, arrays in {
        "shape": {"m0": images[:, :4, :4]},
        "kind": {"m0": images / 255},
        "number": {"m0": images, "m1": images.repeat(2, axis=0)[:3]},
        "mask": {"m0": images, "observed": np.ones((2, 1), bool)},
        "result": {"m0": images, "embed/mean": np.zeros(2)},
    }.items():
        np.savez(root / f"fit_{name}.npz", **arrays)
    malformed.write_arrays(root)
    malformed.write_digits(root)
    malformed.write_pictures(root)
    malformed.write_birds(root)
    malformed.write_configs(root)
    malformed.write_prepared(root, datasets.prepare(smoke_config().data))
    malformed.write_runs(root, finished.workdir)
    malformed.write_weights(root)
    (root / "corrupt_config" / "config.json").write_text('{"model": ')
    (root / "corrupt_summary" / "summary.json").write_text('{"model": ')
    (root / "other_summary" / "summary.json").write_text("[]\n")
    for name in ("other_shape", "no_checkpoint"):
        (root / name / "summary.json").unlink()
    path = root / "other_shape" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["latent_dim"] = 6
    path.write_text(json.dumps(config))
    for path in (root / "no_checkpoint" / "checkpoints").rglob("*"):
        if path.is_file() and "metadata" not in path.name.lower():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return root


@pytest.fixture(scope="module")
def results(places, commands, contents, tmp_path_factory, request):
    """Flags or name -> (outcome, its workdir), and what was in `places`.

    Of the flags whose tests are run.
    """
    asked = {
        value
        for test in request.session.items
        if test.function in (test_usage, test_full_disk)
        for value in test.callspec.params.values()
    }
    root = tmp_path_factory.mktemp("workdirs")
    names = {path.name: str(path) for path in places.iterdir()}
    jobs, workdirs = {}, {}
    for number, flags in enumerate(USAGE):
        if flags not in asked:
            continue
        # Names of files have points, which format() takes for attributes.
        fill = re.compile(r"{([^}]+)}")
        given = [fill.sub(lambda m: names[m[1]], flag) for flag in flags.split(" --")]
        given = [given[0], *(f"--{flag}" for flag in given[1:])]
        workdirs[flags] = root / str(number)
        if flags in COMMANDS:
            given[0] = f"experiments.{given[0]}"
        elif "--workdir" not in flags:
            given.insert(0, f"--workdir={workdirs[flags]}")
        jobs[flags] = (given, NO_NETWORK)
    for name, first in FAILURES.items():
        if name not in asked:
            continue
        workdirs[name] = root / name
        given = [f"--workdir={workdirs[name]}"]
        if name == "data":
            given.append(f"--config.data.data_dir={root / 'full_data'}")
        jobs[name] = (given, first)
    before = contents(places)
    with open(places / "claimed" / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        outcomes = dict(zip(jobs, commands(list(jobs.values())), strict=True))
    return outcomes, workdirs, before, contents(places)


def least(outcomes):
    """KiB of the command that needed least memory."""
    return min(outcome.peak for outcome in outcomes.values())


def test_the_table_is_of_all_kinds_of_input():
    for kind, form in KINDS.items():
        own = [flags for flags in USAGE if re.search(form, flags)]
        assert any(map(FAST.search, own)), kind


@pytest.mark.parametrize(
    "flags", [x if FAST.search(x) else pytest.param(x, marks=SLOW) for x in USAGE]
)
def test_usage(flags, results):
    outcomes, workdirs, _, _ = results
    outcome = outcomes[flags]
    assert outcome.code == 2, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if "error" in line]
    assert len(lines) == 1, outcome.stderr
    assert re.search(f"error: .*{USAGE[flags]}", lines[0]), lines[0]
    if not re.search("no_checkpoint|run_(version|metadata)", flags):
        # Where orbax's threads complain about damage.
        assert lines[0].startswith("error: ")
        assert "Traceback" not in outcome.stderr
    assert outcome.seconds < SECONDS
    assert outcome.peak - least(outcomes) < MEGABYTES << 10
    # Nothing is left that would stand in the way of the corrected command.
    workdir = workdirs[flags]
    left = [path.name for path in workdir.iterdir()] if workdir.exists() else []
    assert left in ([], [".lock"])


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST_FAILURES else pytest.param(name, marks=SLOW)
        for name in FAILURES
    ],
)
def test_full_disk(name, results):
    outcomes, workdirs, _, _ = results
    outcome = outcomes[name]
    assert outcome.code == 1, outcome.stderr
    lines = [line for line in outcome.stderr.splitlines() if "rror" in line]
    assert len(lines) == 1, outcome.stderr
    wanted = "error: No space left on device (where): make room, then repeat"
    assert lines[0].startswith(wanted)
    assert not (workdirs[name] / "summary.json").exists()


def test_no_half_written_data(results):
    if "data" not in results[1]:
        pytest.skip("the command was not run")
    folder = results[1]["data"].parent / "full_data"
    assert not list(folder.rglob("dataset_info.json"))


@pytest.mark.parametrize("commands_of", ["fast", pytest.param("slow", marks=SLOW)])
def test_existing_files_are_left_as_they_are(commands_of, places, results):
    """By the commands of the fast tests, and by those of the slow ones."""
    _, _, before, after = results
    assert not (places / "attacked").exists()
    assert len(before) > 100
    # A damaged checkpoint is set aside under another name, whole.
    after = {path.replace(".damaged", ""): content for path, content in after.items()}
    assert before == after


@SLOW
@pytest.mark.parametrize("module", ["run", "prepare"])
def test_a_wrong_field_of_the_default_config_is_one_line(module):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", "--config.data.sed=1"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: the config has no field 'sed'")

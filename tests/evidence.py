"""Made-up runs of a plan, on disk as `experiments.figures` leaves them."""

import json
import math

from experiments.plans import plan
from experiments.running import workdirs
from mmvae_jax.training import log

# Metric -> tags, {m} for every modality.
TAGS = {
    "elbo": ("elbo", "kl", "reconstruction/{m}"),
    "coherence": (
        "coherence/leave_one_out",
        "coherence/leave_one_out/{m}",
        "coherence/joint",
        "coherence/size_1",
        "classifier_accuracy/{m}",
    ),
    "matching": ("matching/leave_one_out", "matching/leave_one_out/{m}"),
    "frechet": ("frechet_classifier", "frechet_classifier/{m}"),
    "swd": ("swd", "swd/{m}"),
    "fid": ("fid", "fid/{m}"),
    "log_likelihood": ("log_likelihood",),
    "linear_probe": ("linear_probe",),
    "attributes": (
        "attribute_coherence/leave_one_out",
        "attribute_coherence/leave_one_out/{m}",
        *(
            f"attribute_coherence/{attribute}/{direction}"
            for attribute in ("colour", "shape")
            for direction in ("image_given_caption", "caption_given_image")
        ),
        "attribute_accuracy/{m}",
        "attribute_accuracy/colour/{m}",
        "attribute_accuracy/shape/{m}",
    ),
    "captions": ("captions/bleu",),
}
PAIR = ("image", "caption")
# Differences between seeds, in parts of the value.
NOISE = 0.002

# The course of quality with all modalities: what a model loses, at its best beta.
DISTANCE = {
    "unimodal": 100.0,
    "mvae": 105.0,
    "mvae_plus": 107.0,
    "mmvae": 200.0,
    "mopoe": 170.0,
    "mmvae_official": 200.0,
    "unimodal_official": 100.0,
    "mvtcae": 106.0,
    "jmvae_kl": 108.0,
    "telbo": 109.0,
    "crmvae": 104.0,
    "code_flow": 90.0,
}
LOG_LIKELIHOOD = {
    "unimodal": -2280.0,
    "mvae": -2310.0,
    "mvae_plus": -2312.0,
    "mmvae": -2500.0,
    "mopoe": -2340.0,
}
COHERENCE = {"mmvae": 0.8, "mopoe": 0.85, "mvae_plus": 0.7}
# Given one modality; on translated digits, the same part of what is above chance.
SINGLE = {
    **{"mmvae": 0.8, "mopoe": 0.75, "crmvae": 0.7},
    **{"mvtcae": 0.4, "jmvae_kl": 0.35, "telbo": 0.3, "code_flow": 0.75},
}


def as_in_the_paper(spec, beta, tag):
    """A value with which every claim of the paper holds."""
    tag = tag.removeprefix("eval/")
    is_translated = spec.dataset == "translated"
    if tag.startswith(("fid", "swd", "frechet_classifier")):
        # The share of the gap with that many modalities of five.
        share = (spec.num_modalities or 5) / 5
        distance = 100 + (DISTANCE.get(spec.model, 150.0) - 100) * share
        return distance * (1 + 0.1 * abs(math.log10(beta / 0.3)))
    if tag == "coherence/size_1":
        return 0.1 + (0.1 if is_translated else 1.0) * (
            SINGLE.get(spec.model, 0.2) - 0.1
        )
    if tag.startswith("attribute_coherence"):
        return {"mvae": 0.2, "unimodal": 0.14}.get(spec.model, 0.7)
    if tag.startswith("attribute_accuracy"):
        return 0.98
    if tag.startswith("coherence"):
        if spec.model == "code_flow":
            return 0.9
        if is_translated or spec.model == "unimodal":
            return 0.11
        if spec.model == "mvae":
            return 0.15 + 0.1 * math.log10(beta / 3e-4)
        return COHERENCE.get(spec.model, 0.8)
    if tag.startswith("matching"):
        return 0.01 if is_translated else 0.6
    if tag.startswith("classifier_accuracy"):
        return 0.9 if is_translated else 0.97
    if tag == "linear_probe":
        return 0.2 if is_translated else 0.9
    if tag == "log_likelihood":
        return LOG_LIKELIHOOD.get(spec.model, -2400.0)
    return -2600.0


def write(
    directory,
    value=as_in_the_paper,
    *,
    scale="demo",
    specs=None,
    changes=None,
    is_finite=lambda spec, beta, seed: True,
    losses=(2900.0, 2600.0),
    noise=NOISE,
):
    """Writes runs of a plan and returns their evidence.

    Args:
      directory: of the plan; may hold some of its runs already.
      value: (spec, beta, tag) -> the mean over seeds; None: not finite.
      scale: its name.
      specs: the runs; all of the plan if None.
      changes: field -> value of the scale that differ.
      is_finite: (spec, beta, seed) -> whether that member did not diverge.
      losses: of every member when first and last logged.
      noise: seeds differ from the mean by that part of it, times -1, 0, 1, ...
    """
    _, config = plan.load_scale(scale)
    config.update(changes or {})
    for column in plan.pair_columns(config):
        settings = config.pairs.datasets[column]
        settings.seed = config.seed  # CUB's too, so that claims are judged
        if "metrics" in (changes or {}):
            settings.metrics = config.metrics
    plan.record(directory, scale, config)
    if specs is None:
        specs = plan.all_specs(config, plan.figure_specs(config))
    for spec in specs:
        _write_run(directory / spec.folder, config, spec, value, is_finite, noise)
        _write_log(directory / spec.folder, losses)
    return plan.read(directory)


def _write_run(folder, scale, spec, value, is_finite, noise):
    config = plan.run_config(scale, spec, {})
    num = config.data.use_modalities or config.data.num_modalities
    is_pair = spec.dataset in plan.pair_columns(scale)
    modalities = PAIR if is_pair else [f"m{i}" for i in range(num)]
    tags = [
        f"eval/{name}"
        for metric in config.eval.metrics
        for tag in TAGS[metric]
        for name in dict.fromkeys(tag.format(m=m) for m in modalities)
        if name != "swd/caption"  # only of images
    ]
    seeds = config.sweep.seed
    members = []
    for beta in config.sweep.beta:
        for k, seed in enumerate(seeds):
            factor = 1 + noise * (k - (len(seeds) - 1) / 2)
            means = {tag: value(spec, beta, tag) for tag in tags}
            members.append(
                {
                    "beta": beta,
                    "learning_rate": config.sweep.learning_rate[0],
                    "seed": seed,
                    "finite": is_finite(spec, beta, seed),
                    "metrics": {
                        tag: None if mean is None else mean * factor
                        for tag, mean in means.items()
                    },
                }
            )
    folder.mkdir(parents=True, exist_ok=True)
    log.write_json(folder / "config.json", workdirs.resolved(config))
    summary = {
        "model": spec.model,
        "dataset": f"{spec.dataset}-made-up",
        "num_steps": config.train.num_steps,
        "wall_seconds": 1.0,
        "device": "cpu",
        "cpu_cores": 2,
        "members": members,
    }
    log.write_json(folder / "summary.json", summary)


def _write_log(folder, losses):
    members = json.loads((folder / "summary.json").read_text())["members"]
    lines = [
        {
            "step": step,
            "member": k,
            **{name: member[name] for name in ("beta", "learning_rate", "seed")},
            "train/loss": loss,
            "train/elbo": -loss,
        }
        for step, loss in zip((100, 200), losses, strict=True)
        for k, member in enumerate(members)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)

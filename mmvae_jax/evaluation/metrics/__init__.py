"""The metrics: one file each, and the one table of them.

`METRICS` lists the needs of each metric (judges and properties of the data) and the
columns of its values (`COLUMNS`). Tables show the columns in this order.
"""

from collections.abc import Callable
from functools import partial

from mmvae_jax.evaluation.metric import HIGHER, LOWER, Column, Metric, sampled
from mmvae_jax.evaluation.metrics import (
    calibration,
    captions,
    codes,
    coherence,
    conditional_quality,
    cost,
    elbo,
    frechet,
    image_errors,
    linear_probe,
    log_likelihood,
    matching,
    one_to_many,
    precision_recall,
    retrieval,
    second_judge,
    swd,
    variation,
)
from mmvae_jax.evaluation.samplers import SAMPLERS

_CLASSIFIERS, _READERS = "classifier_accuracy", "attribute_accuracy"
_fraction = partial(Column, limits=(0.0, 1.0))
_accuracy = partial(_fraction, better=HIGHER)
_distance = partial(Column, better=LOWER)
_score = partial(Column, better=HIGHER)
_likelihood = partial(_score, unit="nats")


def _conditional(
    tag: str, name: str, kind: Callable[..., Column], short: str = ""
) -> tuple[Column, ...]:
    """Columns of a metric of conditional generation (tags: `conditionals.summarise`).

    Args:
      tag: tag of the metric.
      name: name of its values.
      kind: function that builds a column.
      short: name on a terminal; "": `name`.
    """
    return (
        kind(
            f"{tag}/leave_one_out",
            f"{name}, leave one out",
            short=f"{short or name} l.o.o.",
        ),
        kind(
            f"{tag}/reconstruction", f"{name}, given all", short=f"{short or name} rec."
        ),
        kind(f"{tag}/leave_one_out/*", f"{name} of one modality given the others"),
        kind(f"{tag}/reconstruction/*", f"{name} of reconstructions"),
    )


_PROBED = {
    "label": ("", ""),
    "own": (" of own attributes", " own"),
    "attribute_*": (" by attribute", ""),
}
_PROBE_NAMES = {
    "linear": ("linear probe", "lin."),
    "neighbours": ("k-NN probe", "k-NN"),
    "mlp": ("MLP probe", "MLP"),
}


def _probes(part: str, target: str, kind: Callable[..., Column]) -> list[Column]:
    """Columns of the probes of a part of the codes for a target (tags: `codes`)."""
    words, few = _PROBED[target]
    names = {probe: _PROBE_NAMES[probe] for probe in codes.PROBES}
    return [
        kind(
            f"probe/{part}/{target}/{probe}",
            f"{part}, {name}{words}",
            short=f"{part}{few} {short}",
        )
        for probe, (name, short) in names.items()
    ]


METRICS = {
    "coherence": Metric(
        coherence.coherence,
        needs=("labels", "classifiers"),
        columns=(
            _accuracy(
                "coherence/leave_one_out",
                "coherence",
                reachable=_CLASSIFIERS,
                long="leave-one-out coherence",
            ),
            _accuracy("coherence/joint", "joint coherence", short="joint coh."),
            _accuracy("coherence/leave_one_out/*", "Leave-one-out coherence"),
        ),
        citations=(
            "shi2019variational",
            "sutter2021generalized",
            "daunhawer2022limitations",
        ),
        unconditional="coherence/joint",
    ),
    "attributes": Metric(
        coherence.attributes,
        needs=("attributes", "readers"),
        columns=(
            _accuracy(
                "attribute_coherence/leave_one_out",
                "attribute coherence",
                reachable=_READERS,
                short="attributes",
            ),
            _accuracy(
                "attribute_coherence/joint",
                "joint attribute coherence",
                short="joint attr.",
            ),
            _accuracy("attribute_coherence/leave_one_out/*", "Attribute coherence"),
        ),
        citations=("shi2019variational", "daunhawer2022limitations"),
        unconditional=(
            "attribute_coherence/((?!(leave_one_out|reconstruction)/)[^/]+/)?joint"
        ),
    ),
    "one_to_many": Metric(
        one_to_many.one_to_many,
        needs=("attributes", "open attribute", "readers"),
        columns=(
            _accuracy(
                "one_to_many/agreement",
                "one-to-many agreement",
                short="one-to-many",
            ),
            _fraction(
                "one_to_many/chance",
                "agreement if independent",
                short="if indep.",
            ),
            _distance(
                "one_to_many/total_variation",
                "total variation to real values",
                limits=(0.0, 1.0),
                short="total var.",
            ),
            _accuracy("one_to_many/agreement/*", "One-to-many agreement by condition"),
        ),
        citations=("yeo2026muni",),
    ),
    "second_judge": Metric(
        second_judge.second_judge,
        needs=("labels", "classifiers", "second_classifiers"),
        columns=(
            _accuracy(
                "second_judge/coherence/leave_one_out",
                "coherence, second judge",
                reachable="second_judge/accuracy",
                short="coh. 2nd",
            ),
            _fraction(
                "second_judge/disagreement/leave_one_out",
                "disagreement of two judges",
                short="disagree",
            ),
            _fraction(
                "second_judge/real_disagreement/leave_one_out",
                "disagreement on real examples",
                short="on real",
            ),
        ),
        citations=("shi2019variational",),
    ),
    "matching": Metric(
        matching.matching,
        needs=("complete tuples", "matchers"),
        columns=(
            Column(
                "matching/leave_one_out",
                "matching (no labels)",
                HIGHER,
                chance=0.0,
                short="matching",
                long="annotation-free coherence",
            ),
            Column(
                "matching/leave_one_out/*",
                "Matching (coherence without labels)",
                HIGHER,
                chance=0.0,
            ),
            *(
                _accuracy(
                    f"matching/recall_at_{rank}",
                    f"recall at {rank} of what it is generated from",
                    reachable=f"matching/real_recall_at_{rank}",
                    short=f"matching R@{rank}",
                )
                for rank in retrieval.RANKS
            ),
            *(
                _fraction(
                    f"matching/real_recall_at_{rank}",
                    f"recall at {rank}, real queries",
                    short=f"real R@{rank}",
                )
                for rank in retrieval.RANKS
            ),
        ),
        citations=(
            "oord2018representation",
            "daunhawer2022limitations",
            "frome2013devise",
        ),
        unconditional="matching/joint",
    ),
    "fid": Metric(
        frechet.fid,
        needs=("images of 1 or 3 channels", "weights", "cache"),
        columns=(_distance("fid", "FID"), _distance("fid/*", "FID")),
        citations=("heusel2017gans", "szegedy2016rethinking", "seitzer2020fid"),
        unconditional="fid(/.*)?",
    ),
    "frechet": Metric(
        frechet.frechet,
        needs=("labels", "classifiers"),
        columns=(
            _distance(
                "frechet_classifier",
                "Fréchet (classifier)",
                short="Frechet (clf)",
                long="Fréchet distance, classifier features",
            ),
            _distance(
                "frechet_classifier/*", "Fréchet distance on classifier features"
            ),
        ),
        citations=("heusel2017gans",),
        unconditional="frechet_classifier(/.*)?",
    ),
    "swd": Metric(
        swd.swd,
        needs=("images",),
        columns=(
            _distance("swd", "SWD", long="sliced Wasserstein distance"),
            _distance("swd/*", "Sliced Wasserstein distance"),
        ),
        citations=("karras2018progressive",),
        unconditional="swd(/.*)?",
    ),
    "conditional_swd": Metric(
        conditional_quality.conditional_swd,
        needs=("images",),
        columns=_conditional("conditional_swd", "SWD", _distance),
        citations=("karras2018progressive", "daunhawer2022limitations"),
    ),
    "conditional_frechet": Metric(
        conditional_quality.conditional_frechet,
        needs=("labels", "classifiers"),
        columns=_conditional(
            "conditional_frechet", "Fréchet (classifier)", _distance, "Frechet"
        ),
        citations=("heusel2017gans", "sutter2021generalized"),
    ),
    "conditional_fid": Metric(
        conditional_quality.conditional_fid,
        needs=("images of 1 or 3 channels", "weights"),
        columns=_conditional("conditional_fid", "FID", _distance),
        citations=(
            "heusel2017gans",
            "szegedy2016rethinking",
            "seitzer2020fid",
            "daunhawer2022limitations",
        ),
    ),
    "precision_recall": Metric(
        precision_recall.precision_recall,
        needs=("labels", "classifiers"),
        columns=(
            _accuracy("precision_recall/prior/precision", "precision"),
            _accuracy("precision_recall/prior/recall", "recall"),
            Column("precision_recall/prior/density", "density", HIGHER),
            _accuracy("precision_recall/prior/coverage", "coverage"),
            *(
                Column(
                    f"precision_recall/leave_one_out/{name}",
                    f"{name}, leave one out",
                    HIGHER,
                    limits=None if name == "density" else (0.0, 1.0),
                    short=f"{name} l.o.o.",
                )
                for name in precision_recall.Scores._fields
            ),
        ),
        citations=("kynkaanniemi2019improved", "naeem2020reliable"),
        unconditional="precision_recall/prior/.*",
    ),
    "variation": Metric(
        variation.variation,
        needs=("labels", "classifiers"),
        columns=(
            Column(
                "variation/leave_one_out",
                "variation of draws over that of a class",
                short="variation",
            ),
            Column(
                "variation/leave_one_out/*", "Variation of draws over that of a class"
            ),
        ),
        citations=("mmvae_jax",),
    ),
    "image_errors": Metric(
        image_errors.image_errors,
        needs=("images",),
        columns=(
            *_conditional("image_errors/mse", "MSE", _distance),
            *_conditional("image_errors/psnr", "PSNR", partial(_score, unit="dB")),
            *_conditional("image_errors/ssim", "SSIM", _score),
        ),
        citations=("wang2004image",),
    ),
    "calibration": Metric(
        calibration.calibration,
        needs=("images or vectors",),
        columns=(
            _fraction(
                "calibration/coverage_50/leave_one_out",
                "coverage of 50 % intervals",
                short="cover 50",
            ),
            _fraction(
                "calibration/coverage_90/leave_one_out",
                "coverage of 90 % intervals",
                short="cover 90",
            ),
            _distance("calibration/crps/leave_one_out", "CRPS"),
            Column(
                "calibration/coverage_50/leave_one_out/*", "Coverage of 50 % intervals"
            ),
            Column(
                "calibration/coverage_90/leave_one_out/*", "Coverage of 90 % intervals"
            ),
            _distance("calibration/crps/leave_one_out/*", "CRPS"),
        ),
        citations=("gneiting2007strictly",),
    ),
    "elbo": Metric(
        elbo.elbo,
        columns=(
            _likelihood("elbo", "ELBO"),
            Column("kl", "KL", unit="nats"),
            _likelihood("reconstruction/*", "Reconstruction (log-likelihood in nats)"),
        ),
        citations=("kingma2014auto", "daunhawer2022limitations"),
    ),
    "log_likelihood": Metric(
        log_likelihood.log_likelihood,
        columns=(
            _likelihood(
                "log_likelihood",
                "log-likelihood",
                short="log-lik.",
                long="joint log-likelihood",
            ),
        ),
        options={"num_samples": "importance_samples", "proposal": "proposal"},
        citations=("burda2016importance", "sutter2021generalized"),
    ),
    "linear_probe": Metric(
        linear_probe.linear_probe,
        needs=("labels",),
        columns=(
            _accuracy(
                "linear_probe",
                "linear probe",
                short="probe",
                long="accuracy of a linear classifier",
            ),
        ),
        citations=("sutter2021generalized", "daunhawer2022limitations"),
    ),
    "codes": Metric(
        codes.codes,
        needs=("labels",),
        columns=(
            _accuracy("clusters/accuracy", "clustering accuracy", short="clusters"),
            _accuracy("clusters/nmi", "NMI"),
            Column("clusters/ari", "ARI", HIGHER, limits=(-0.5, 1.0), chance=0.0),
            *_probes("shared", "label", _accuracy),
            *_probes("private", "label", _fraction),
            *_probes("shared", "own", _fraction),
            *_probes("private", "own", _accuracy),
            *_probes("shared", "attribute_*", _fraction),
            *_probes("private", "attribute_*", _fraction),
        ),
        citations=("hubert1985comparing", "pedregosa2011scikit"),
    ),
    "cost": Metric(
        cost.cost,
        columns=(
            Column("cost/parameters", "parameters"),
            Column("cost/sample", "time of a sample", LOWER, "ms", short="ms a sample"),
            Column(
                "cost/conditional",
                "time of a conditional sample",
                LOWER,
                "ms",
                short="ms cond.",
            ),
            Column(
                "cost/evaluations/sample",
                "network evaluations of a sample",
                LOWER,
                short="evals a sample",
            ),
            Column(
                "cost/evaluations/conditional",
                "network evaluations of a conditional sample",
                LOWER,
                short="evals cond.",
            ),
        ),
        citations=("mmvae_jax",),
    ),
    "retrieval": Metric(
        retrieval.retrieval,
        needs=("complete tuples",),
        columns=tuple(
            _accuracy(f"recall_at_{rank}", f"recall at {rank}", short=f"R@{rank}")
            for rank in retrieval.RANKS
        ),
        citations=("frome2013devise",),
    ),
    "captions": Metric(
        captions.captions,
        needs=("captions", "complete tuple"),
        columns=(
            Column("captions/bleu", "BLEU", HIGHER, limits=(0.0, 100.0)),
            _fraction("captions/distinct_1", "distinct-1"),
            _fraction("captions/distinct_2", "distinct-2"),
        ),
        citations=("papineni2002bleu", "post2018call", "li2016diversity"),
        unconditional="captions/prior/.*",
    ),
}


def columns_of(name: str) -> tuple[Column, ...]:
    """The columns of a metric, each followed by those of fitted samplers."""
    metric, found = METRICS[name], []
    for column in metric.columns:
        found.append(column)
        if metric.is_unconditional(column.tag):
            found += [_by_sampler(column, sampler) for sampler in SAMPLERS]
    return tuple(found)


def _by_sampler(column: Column, sampler: str) -> Column:
    """The column of a value for examples of a fitted sampler."""

    def named(words: str) -> str:
        return f"{words}, {SAMPLERS[sampler].label}" if words else ""

    return column._replace(
        tag=sampled(column.tag, sampler),
        heading=named(column.heading),
        short=named(column.short),
        long=named(column.long),
    )


# Tag as in summary.json -> its column.
COLUMNS = {f"eval/{own.tag}": own for name in METRICS for own in columns_of(name)}

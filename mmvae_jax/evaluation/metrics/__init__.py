"""The metrics: one file each, and the one table of them.

All that others ask of a metric is read off `METRICS`: which judges are trained for it,
what data it is refused on, and where its values are shown (`COLUMNS`). Tables show the
columns in this order.
"""

from functools import partial

from mmvae_jax.evaluation.metric import HIGHER, LOWER, Column, Metric, sampled
from mmvae_jax.evaluation.metrics import (
    captions,
    coherence,
    elbo,
    frechet,
    linear_probe,
    log_likelihood,
    matching,
    swd,
)
from mmvae_jax.evaluation.samplers import SAMPLERS

_CLASSIFIERS, _READERS = "classifier_accuracy", "attribute_accuracy"
_fraction = partial(Column, limits=(0.0, 1.0))
_accuracy = partial(_fraction, better=HIGHER)
_distance = partial(Column, better=LOWER)
_likelihood = partial(Column, better=HIGHER, unit="nats")

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
        ),
        citations=("oord2018representation", "daunhawer2022limitations"),
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
    """The columns of a metric, each before those of the same by fitted samplers."""
    metric, found = METRICS[name], []
    for column in metric.columns:
        found.append(column)
        if metric.is_unconditional(column.tag):
            found += [_by_sampler(column, sampler) for sampler in SAMPLERS]
    return tuple(found)


def _by_sampler(column: Column, sampler: str) -> Column:
    """The column of a value of what a fitted sampler has drawn."""

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

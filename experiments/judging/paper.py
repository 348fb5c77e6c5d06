"""The claims of the papers as data, which `experiments.claims` judges on runs.

The papers are Daunhawer et al. (2022), "On the Limitations of Multimodal VAEs", and the
public part (abstract and introduction) of "Mitigating the Limitations of Multimodal
VAEs with Coordination-based Approach", a submission to ICLR 2023 (COORD). The last
claims are of this project, on `code_flow` (OURS). A claim has a sentence in our words,
its place in the paper, its runs, and the rule that judges it (`RULES`). If runs lack
the paper's FID, the sliced Wasserstein distance and the Frechet distance in our
classifiers' features replace it, with separate verdicts, because they measure different
properties.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from experiments.plans import plan
from mmvae_jax.evaluation.metric import LOWER
from mmvae_jax.evaluation.metrics import COLUMNS

# Smallest difference that counts, in standard errors. By convention, this is an error
# rate of about one in twenty for many seeds. Three seeds per model would need more, and
# there is no correction for the number of claims.
THRESHOLD = 2.0
# A claim with a smaller difference in standard errors is fragile: other seeds may
# reverse it.
FRAGILE = 3.0
# "At the level of": within this fraction of the gap to the mixtures. A coherence has
# collapsed if less than this fraction is left.
PART_OF_GAP = 0.5
# Chance level of ten digits.
CHANCE = 0.1

COHERENCE = "eval/coherence/leave_one_out"
SINGLE = "eval/coherence/size_1"
ACCURACY = "eval/classifier_accuracy"
_PROBE = "eval/linear_probe"
LOG_LIKELIHOOD = "eval/log_likelihood"
ELBO = "eval/elbo"
# Quality of the first modality (Figures 2 and 3), or mean over modalities (Figure 11):
# (tags if all runs have FID, tags otherwise).
FIRST = (("eval/fid/m0",), ("eval/swd/m0", "eval/frechet_classifier/m0"))
MEAN = (("eval/fid",), ("eval/swd", "eval/frechet_classifier"))
# Pairs of images and captions: the quality of images; the coherence of images given
# captions, with the chance of guessing and the accuracy on real images.
IMAGE = (("eval/fid/image",), ("eval/swd/image",))
GIVEN_CAPTIONS = {
    f"eval/attribute_coherence/{name}": (chance, f"eval/attribute_accuracy/{real}")
    for name, chance, real in (
        ("colour/image_given_caption", 1 / 8, "colour/image"),
        ("shape/image_given_caption", 1 / 6, "shape/image"),
        ("leave_one_out/image", (1 / 8 + 1 / 6) / 2, "image"),
    )
}
MATCHING = "eval/matching/leave_one_out"
LOWER_IS_BETTER = tuple(
    tag.removesuffix("/*") for tag, column in COLUMNS.items() if column.better == LOWER
)

MIXTURES = ("mmvae", "mopoe")
# The public part of COORD names no model and no number. By its definition, these models
# pull unimodal posteriors to a joint one; CRMVAE is the proposed model. We chose the
# references, MVAE for quality and the mixtures for coherence.
COORDINATION = ("mvtcae", "jmvae_kl", "telbo")
# What `code_flow` is compared with: one model of each kind that has no flow. It is
# trained in its three stages; networks, steps in all and betas are those of the others.
_COMPARED = ("mvae", *MIXTURES, "mvtcae", "crmvae")
IN_PLACE, TRANSLATED = "polymnist", "translated"
_BOTH = (IN_PLACE, TRANSLATED)
SHAPES, CUB = "shapes", "cub"

# Published coherences on PolyMNIST by the number of given modalities, 1 to 4, for
# comparison: images, networks and classifiers differ from ours.
PUBLISHED_COHERENCE = {
    "mvae_plus": (0.29, 0.42, 0.48, 0.52),
    "mmvae": (0.71, 0.71, 0.71, 0.71),
    "mopoe": (0.66, 0.77, 0.81, 0.83),
    "mvtcae": (0.59, 0.77, 0.83, 0.86),
}
PUBLISHED_SOURCE = (
    "published for PolyMNIST at β = 2.5, MoPoE-VAE by Sutter et al. (2021), MMVAE, "
    "MVTCAE and MVAE+ (read off a figure) by Hwang et al. (2021)"
)

# Unless noted, each model is judged at its best beta for the metric: for each seed, the
# beta with the best mean over the other seeds (`plans.choice`), so that no beta is
# judged on the numbers that selected it. A rule is a number that must exceed zero by
# THRESHOLD standard errors, sometimes with another condition, except "ranks alike",
# "trains" and "nothing is annotated".
RULES = {
    "is worse": (
        "the difference to {others}, each at the beta chosen for it, is at least "
        f"{THRESHOLD:g} standard errors"
    ),
    "is better": (
        "the difference to {others}, each at the beta chosen for it, is at least "
        f"{THRESHOLD:g} standard errors"
    ),
    "reaches": (
        "behind {target} by less than half of what {nearest} is, "
        f"with {THRESHOLD:g} standard errors to spare; being ahead counts as reaching"
    ),
    "is level": (
        "neither behind nor ahead of {target} by half of what {nearest} is "
        f"behind, with {THRESHOLD:g} standard errors to spare"
    ),
    "grows": (
        "at the beta of the figure, the least-squares slope over the number of "
        f"modalities is {THRESHOLD:g} standard errors above 0, more than half of the "
        "steps go up, and with all modalities the model is behind {target}"
    ),
    "grows more": (
        "at the beta of the figure, the slope over the number of modalities exceeds "
        f"that of {{target}} by {THRESHOLD:g} standard errors"
    ),
    "rises": (
        "the least-squares slope over log10(beta), from the smallest to the largest, "
        f"is {THRESHOLD:g} standard errors above 0, and most of the steps go up"
    ),
    "can rise": (
        "the best of the other betas is ahead of the smallest one by "
        f"{THRESHOLD:g} standard errors"
    ),
    "collapses": (
        f"of the coherence above chance ({CHANCE:g}), less than half is left of what "
        "the classifiers' accuracy leaves possible, with "
        f"{THRESHOLD:g} standard errors to spare"
    ),
    "falls": (
        "the difference to the data set without translation, each at the beta chosen "
        f"for it, is at least {THRESHOLD:g} standard errors"
    ),
    "ranks alike": (
        f"of the pairs of models whose quality differs by {THRESHOLD:g} standard "
        "errors, none is the other way round in log-likelihood by as much, and more "
        "than half are the same way round by as much; in SE: the least of them"
    ),
    "is smaller": (
        "the gap of MoPoE-VAE to MVAE in units of MMVAE's is smaller in log-likelihood "
        f"than in quality, by {THRESHOLD:g} standard errors (linearised)"
    ),
    "is never both": (
        "at every beta the model falls short of quality or of coherence by "
        f"{THRESHOLD:g} standard errors. Of quality: its images are further behind "
        "those of unimodal VAEs at their best beta than half of what the multimodal "
        "model that is most behind them is at its own; none does where that one is "
        f"not behind by {THRESHOLD:g} standard errors. Of coherence: what images given "
        "captions have above chance is less than half of what real images have"
    ),
    "nothing is annotated": (
        "not judged: nobody has annotated what is shared, which coherence needs"
    ),
    "trains": (
        "at the largest beta all members are finite, their eval/elbo too, and their "
        "loss is lower at the end of training than when it was first logged"
    ),
}


class Claim(NamedTuple):
    """A statement of the paper.

    Attributes:
      name: name in claims.json.
      text: the claim in our words.
      where: place in the paper.
      rule: the rule that judges it, one of RULES.
      tags: the metrics, with a verdict for each; or FIRST, MEAN or IMAGE.
      models: the models, with a verdict for each; "" for a claim about all models.
      others: models to compare with; the target, and then the references.
      columns: the data sets, with a verdict for each.
      reference: the data set to compare with, if any.
      runs: "beta": the runs over beta; "modalities": those of Figure 3; "repeated":
        those of Figure 11; "official": those of Figure 12; "any": no run is required.
    """

    name: str
    text: str
    where: str
    rule: str
    tags: tuple
    models: tuple[str, ...]
    others: tuple[str, ...] = ()
    columns: tuple[str, ...] = (IN_PLACE,)
    reference: str = ""
    runs: str = "beta"

    @property
    def is_by_modalities(self) -> bool:
        """Whether the runs differ in the number of modalities, at one beta."""
        return self.runs in ("modalities", "repeated")


CLAIMS = (
    Claim(
        "gap",
        "MMVAE and MoPoE-VAE generate worse than unimodal VAEs",
        "Fig. 2, Sec. 5.1",
        "is worse",
        FIRST,
        MIXTURES,
        ("unimodal",),
        _BOTH,
    ),
    Claim(
        "mvae_reaches_unimodal",
        "MVAE, which takes all modalities, reaches the quality of unimodal VAEs",
        "Fig. 2, Sec. 5.1",
        "reaches",
        FIRST,
        ("mvae",),
        ("unimodal", *MIXTURES),
        _BOTH,
    ),
    Claim(
        "mvae_level_with_unimodal",
        "MVAE is at the level of unimodal VAEs, and not above it either",
        "Fig. 2, Sec. 5.1",
        "is level",
        FIRST,
        ("mvae",),
        ("unimodal", *MIXTURES),
        _BOTH,
    ),
    Claim(
        "gap_grows",
        "the gap of MMVAE and MoPoE-VAE grows with each additional modality",
        "Fig. 3, Sec. 5.1",
        "grows",
        FIRST,
        MIXTURES,
        ("unimodal",),
        _BOTH,
        runs="modalities",
    ),
    Claim(
        "gap_grows_more",
        "MVAE loses less with additional modalities than MMVAE and MoPoE-VAE",
        "Fig. 3, Sec. 5.1",
        "grows more",
        FIRST,
        MIXTURES,
        ("mvae",),
        _BOTH,
        runs="modalities",
    ),
    Claim(
        "gap_grows_repeated",
        "the gap grows with repeated modalities too, of one and the same background",
        "Fig. 11, App. C.2",
        "grows",
        MEAN,
        MIXTURES,
        ("unimodal",),
        _BOTH,
        runs="repeated",
    ),
    Claim(
        "coherence",
        "MMVAE and MoPoE-VAE are more coherent than MVAE on PolyMNIST",
        "Fig. 4a, Sec. 5.2",
        "is better",
        (COHERENCE,),
        MIXTURES,
        ("mvae",),
    ),
    Claim(
        "mvae_coherence_rises",
        "MVAE's coherence rises with beta",
        "Fig. 4a, Sec. 5.2",
        "rises",
        (COHERENCE,),
        ("mvae",),
    ),
    Claim(
        "mvae_coherence_can_rise",
        "MVAE's coherence can improve significantly with beta",
        "Fig. 4a, Sec. 5.2",
        "can rise",
        (COHERENCE,),
        ("mvae",),
    ),
    Claim(
        "coherence_collapses",
        "the coherence of all models collapses on Translated-PolyMNIST",
        "Fig. 4b, Sec. 5.2",
        "collapses",
        (COHERENCE,),
        plan.MULTIMODAL,
        columns=(TRANSLATED,),
        reference=IN_PLACE,
    ),
    Claim(
        "linear_classification_falls",
        "linear classification of the representations falls on Translated-PolyMNIST",
        "Fig. 6, App. C.2",
        "falls",
        (_PROBE,),
        plan.MULTIMODAL,
        columns=(TRANSLATED,),
        reference=IN_PLACE,
    ),
    Claim(
        "log_likelihood_ranking",
        "log-likelihoods rank the models as their quality does",
        "Fig. 7, App. C.2",
        "ranks alike",
        FIRST,
        ("",),
        plan.MODELS,
        _BOTH,
    ),
    Claim(
        "log_likelihood_gap",
        "the gap between MVAE and MoPoE-VAE is less pronounced in log-likelihood",
        "Fig. 7, App. C.2",
        "is smaller",
        FIRST,
        ("mopoe",),
        ("mvae", "mmvae"),
        _BOTH,
    ),
    Claim(
        "pairs_gap",
        "on images with captions too, MMVAE and MoPoE-VAE generate worse images than "
        "unimodal VAEs",
        "Fig. 2c, Sec. 5.1",
        "is worse",
        IMAGE,
        MIXTURES,
        ("unimodal",),
        (SHAPES, CUB),
    ),
    Claim(
        "pairs_mvae_reaches_unimodal",
        "on images with captions too, MVAE reaches the quality of unimodal VAEs",
        "Fig. 2c, Sec. 5.1",
        "reaches",
        IMAGE,
        ("mvae",),
        ("unimodal", *MIXTURES),
        (SHAPES, CUB),
    ),
    Claim(
        "none_is_both",
        "no model generates images that are both good and coherent with the caption "
        "(said of CUB, and judged on Shapes, of which the truth is known)",
        "Fig. 4c, Sec. 5.2",
        "is never both",
        tuple(GIVEN_CAPTIONS),
        plan.MULTIMODAL,
        ("unimodal", *plan.MULTIMODAL),
        (SHAPES,),
    ),
    Claim(
        "none_is_both_on_cub",
        "no model generates images that are both good and coherent with the caption "
        "on CUB",
        "Fig. 4c, Sec. 5.2",
        "nothing is annotated",
        (MATCHING,),
        ("",),
        plan.MULTIMODAL,
        (CUB,),
        runs="any",
    ),
    Claim(
        "official_gap",
        "the official MMVAE has the gap as well: DReG, importance sampling, learned "
        "prior",
        "Fig. 12, App. C.2",
        "is worse",
        FIRST,
        ("mmvae_official",),
        ("unimodal_official",),
        runs="official",
    ),
    Claim(
        "mvae_plus_coherence",
        "MVAE+ (ELBO sub-sampling) is more coherent than MVAE",
        "Fig. 13, App. C.2",
        "is better",
        (COHERENCE,),
        ("mvae_plus",),
        ("mvae",),
    ),
    Claim(
        "mvae_plus_quality",
        "MVAE+ generates as well as MVAE",
        "Fig. 13, App. C.2",
        "is level",
        FIRST,
        ("mvae_plus",),
        ("mvae", *MIXTURES),
    ),
    Claim(
        "mvae_plus_log_likelihood",
        "MVAE+ has MVAE's log-likelihood",
        "Fig. 13, App. C.2",
        "is level",
        (LOG_LIKELIHOOD,),
        ("mvae_plus",),
        # MoPoE-VAE's gap in this metric is small, as the paper also says.
        ("mvae", "mmvae"),
    ),
    Claim(
        "mvae_trains",
        "MVAE trains at large beta here (in the paper it could not)",
        "captions of Figs. 2, 4, 6 to 8",
        "trains",
        (ELBO,),
        ("mvae",),
        columns=_BOTH,
    ),
    Claim(
        "coordination_quality",
        "coordination-based models, which tie unimodal posteriors to the joint one, "
        "do not have the mixtures' gap: they reach MVAE's quality",
        "COORD, abstract",
        "reaches",
        MEAN,
        COORDINATION,
        ("mvae", *MIXTURES),
        _BOTH,
    ),
    Claim(
        "coordination_ahead_of_mixtures",
        "coordination-based models generate better than both mixtures",
        "COORD, abstract",
        "is better",
        MEAN,
        (*COORDINATION, "crmvae"),
        MIXTURES,
        _BOTH,
    ),
    Claim(
        "coordination_coherence",
        "coordination-based models are poor at generating across modalities: given "
        "one, they are less coherent than both mixtures",
        "COORD, abstract",
        "is worse",
        (SINGLE,),
        COORDINATION,
        MIXTURES,
        _BOTH,
    ),
    Claim(
        "crmvae_coherence",
        "reconstruction from unimodal posteriors mends that: given one modality, "
        "CRMVAE is more coherent than all other coordination-based models",
        "COORD, abstract",
        "is better",
        (SINGLE,),
        ("crmvae",),
        COORDINATION,
        _BOTH,
    ),
    Claim(
        "crmvae_reaches_mixtures",
        "CRMVAE avoids the limitation of coordination-based models: given one "
        "modality, its coherence reaches that of MoPoE-VAE",
        "COORD, abstract",
        "reaches",
        (SINGLE,),
        ("crmvae",),
        ("mopoe", *COORDINATION),
        _BOTH,
    ),
    Claim(
        "crmvae_quality",
        "CRMVAE avoids the limitation of mixtures as well: it reaches MVAE's quality",
        "COORD, abstract",
        "reaches",
        MEAN,
        ("crmvae",),
        ("mvae", *MIXTURES),
        _BOTH,
    ),
    Claim(
        "code_flow_quality",
        "a code and flows, trained in stages, generate better than product, mixtures "
        "and coordination",
        "OURS, docs/better.md",
        "is better",
        MEAN,
        ("code_flow",),
        _COMPARED,
        _BOTH,
    ),
    Claim(
        "code_flow_reaches_mixtures",
        "a code and flows, trained in stages, are coherent from one modality: they "
        "reach MoPoE-VAE",
        "OURS, docs/better.md",
        "reaches",
        (SINGLE,),
        ("code_flow",),
        ("mopoe", *COORDINATION),
    ),
    Claim(
        "code_flow_on_translated",
        "a code and flows, trained in stages, are more coherent on translated digits "
        "than all of these",
        "OURS, docs/better.md",
        "is better",
        (COHERENCE,),
        ("code_flow",),
        _COMPARED,
        (TRANSLATED,),
    ),
)

# The trade-off of Figures 2 and 4 and the theorem's ELBO, judged by `make demo`.
# Quality is the mean over modalities; that scale has no FID.
TRADEOFF = (
    Claim(
        "worse_than_mvae",
        "MMVAE and MoPoE-VAE generate worse than MVAE",
        "Fig. 2, Sec. 5.1",
        "is worse",
        MEAN[1][:1],
        MIXTURES,
        ("mvae",),
    ),
    Claim(
        "worse_than_unimodal",
        "MMVAE and MoPoE-VAE generate worse than unimodal VAEs",
        "Fig. 2, Sec. 5.1",
        "is worse",
        MEAN[1][:1],
        MIXTURES,
        ("unimodal",),
    ),
    Claim(
        "lower_elbo",
        "MMVAE and MoPoE-VAE have a lower ELBO than MVAE",
        "Theorem 1",
        "is worse",
        (ELBO,),
        MIXTURES,
        ("mvae",),
    ),
    Claim(
        "coherence",
        "MMVAE and MoPoE-VAE are more coherent than MVAE",
        "Fig. 4a, Sec. 5.2",
        "is better",
        (COHERENCE,),
        MIXTURES,
        ("mvae",),
    ),
)


def specs_of(
    claim: Claim, scale: ConfigDict, column: str, model: str
) -> list[plan.Spec]:
    """The runs of the verdict on one data set and one model."""
    if claim.runs == "any":
        return []
    models = [name for name in (model, *claim.others) if name]
    if claim.runs == "beta":
        columns = [name for name in (column, claim.reference) if name]
        return [plan.Spec(name, model) for name in columns for model in models]
    if claim.runs == "official":
        num = scale.official.num_modalities
        return [plan.modalities_spec(scale, column, m, num, False) for m in models]
    is_repeated = claim.runs == "repeated"
    specs = []
    for name in models:
        if name == "unimodal":
            specs.append(plan.Spec(column, name, 0, is_repeated))
        else:
            specs += [
                plan.modalities_spec(scale, column, name, num, is_repeated)
                for num in scale.num_modalities
            ]
    return specs

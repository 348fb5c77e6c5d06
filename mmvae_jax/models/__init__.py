"""A model is a NamedTuple of pure functions, built from a config.

MODELS is the table of all models. To add a model defined by its subsets, write its
function in `subsets.py` and its row here. A model with its own objective is a file here
with the equation, options and builder, and a row. Builders share the code in `parts`.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from mmvae_jax.errors import ArgumentError, UsageError, fields_of
from mmvae_jax.mathematics import subsets
from mmvae_jax.models import (
    code_flow,
    contrastive,
    coordination,
    dmvae,
    jensen_shannon,
    jnf,
    latent_flow,
    mixtures,
    mmvae_plus,
    mmvm,
    nexus,
    official,
    parts,
)
from mmvae_jax.models.coordination import coordination_model
from mmvae_jax.models.mixtures import mixture_model
from mmvae_jax.models.options import Options, mistakes
from mmvae_jax.models.unimodal import unimodal_model
from mmvae_jax.types import (
    Array,
    Distribution,
    MultimodalVAE,
    ObjectiveTerms,
    Params,
)


class Citation(NamedTuple):
    """Source of a model.

    Attributes:
      key: key in references.bib; that of this project for unpublished models.
      text: authors and year, for documents.
      also: keys of other works that the model uses.
    """

    key: str
    text: str
    also: tuple[str, ...] = ()


class Model(NamedTuple):
    """A row of the table of models.

    Attributes:
      build: (config, shapes, options) -> MultimodalVAE, for `make_model`.
      label: name in figures and tables.
      kind: group of the model in figures. The figures of the family have one panel for
        each of the first four kinds below.
      options: name -> Option, the options of the model in config.model.options.
      citation: source of the model.
      summary: one sentence for the table of the README.
    """

    build: Callable[..., MultimodalVAE]
    label: str
    kind: str
    options: Options
    citation: Citation
    summary: str


MIXTURE = "products, mixtures"
COORDINATED = "coordination-based"
PRIVATE = "private vectors, codes"
POOLED = "other poolings"
OFFICIAL = "importance-weighted, as released"
OTHER = "other"

_DREG = ("burda2016importance", "tucker2019doubly")

_JNF = ("suzuki2016joint", "dinh2017density", "neal2011mcmc")

_DAUNHAWER = Citation("daunhawer2022limitations", "Daunhawer et al. (2022)")
_QIU = Citation("qiu2025multimodal", "Qiu et al. (2025)")
_SHI = Citation("shi2019variational", "Shi et al. (2019)")
_SUZUKI = Citation("suzuki2016joint", "Suzuki et al. (2016)")
_VO = Citation("vo2026hellinger", "Vo & Valera (2026)")

# In the order of lists and figures.
MODELS = {
    "unimodal": Model(
        unimodal_model,
        "unimodal VAEs",
        MIXTURE,
        {},
        Citation("kingma2014auto", "Kingma & Welling (2014)"),
        "One VAE for each modality, for comparison: nothing is shared.",
    ),
    "mvae": Model(
        partial(mixture_model, mixture=subsets.full_set),
        "MVAE",
        MIXTURE,
        mixtures.OPTIONS,
        Citation("wu2018multimodal", "Wu & Goodman (2018)"),
        "The joint posterior is the product of all experts and the prior.",
    ),
    "mvae_plus": Model(
        partial(mixture_model, mixture=subsets.full_set, is_subsampled=True),
        "MVAE+",
        MIXTURE,
        mixtures.SUBSAMPLED_OPTIONS,
        _DAUNHAWER,
        "MVAE, and the ELBO of each modality alone.",
    ),
    "mmvae": Model(
        partial(mixture_model, mixture=subsets.unimodal_subsets),
        "MMVAE",
        MIXTURE,
        mixtures.OPTIONS,
        _SHI,
        "The joint posterior is the mixture of the experts.",
    ),
    "mopoe": Model(
        partial(mixture_model, mixture=subsets.powerset),
        "MoPoE-VAE",
        MIXTURE,
        mixtures.OPTIONS,
        Citation("sutter2021generalized", "Sutter et al. (2021)"),
        "The joint posterior is the mixture of the products of all subsets.",
    ),
    "mmvae_official": Model(
        official.official_mixture_model,
        "MMVAE (official)",
        OFFICIAL,
        official.OPTIONS,
        _SHI._replace(also=_DREG),
        "MMVAE as released: Laplace experts, importance-weighted, DReG.",
    ),
    "unimodal_official": Model(
        partial(unimodal_model, is_official=True),
        "unimodal VAEs (official)",
        OFFICIAL,
        official.UNIMODAL_OPTIONS,
        _DAUNHAWER._replace(also=("shi2019variational", *_DREG)),
        "Unimodal VAEs with the objective of MMVAE as released.",
    ),
    "mmvae_plus": Model(
        mmvae_plus.mmvae_plus_model,
        "MMVAE+",
        PRIVATE,
        mmvae_plus.OPTIONS,
        Citation(
            "palumbo2023mmvae",
            "Palumbo et al. (2023)",
            (*_DREG, "martens2024disentangling"),
        ),
        "A mixture for what is shared, and a private vector for each modality.",
    ),
    "cmvae": Model(
        mmvae_plus.mmvae_plus_model,
        "CMVAE",
        PRIVATE,
        mmvae_plus.CLUSTERED_OPTIONS,
        Citation("palumbo2024deep", "Palumbo et al. (2024)", _DREG),
        "MMVAE+ with a learned mixture as the prior of what is shared.",
    ),
    "dmvae": Model(
        dmvae.dmvae_model,
        "DMVAE",
        PRIVATE,
        dmvae.OPTIONS,
        Citation("lee2021private", "Lee & Pavlovic (2021)"),
        "A product for what is shared, and a private vector for each modality.",
    ),
    "mvtcae": Model(
        partial(coordination_model, kind=coordination.MVTCAE),
        "MVTCAE",
        COORDINATED,
        coordination.MVTCAE.options,
        Citation("hwang2021multi", "Hwang et al. (2021)"),
        "A product, and KL terms that pull the experts to it.",
    ),
    "crmvae": Model(
        partial(coordination_model, kind=coordination.CRMVAE),
        "CRMVAE",
        COORDINATED,
        coordination.CRMVAE.options,
        Citation("anonymous2023mitigating", "Anonymous (ICLR 2023 submission)"),
        "MVTCAE's terms, and each expert reconstructs its own modality.",
    ),
    "jmvae_kl": Model(
        partial(coordination_model, kind=coordination.JMVAE_KL),
        "JMVAE-kl",
        COORDINATED,
        coordination.JMVAE_KL.options,
        _SUZUKI,
        "A joint encoder, and KL terms that pull the experts to it.",
    ),
    "telbo": Model(
        partial(coordination_model, kind=coordination.TELBO),
        "TELBO",
        COORDINATED,
        coordination.TELBO.options,
        Citation("vedantam2018generative", "Vedantam et al. (2018)"),
        "A joint encoder, and the ELBO of each modality alone.",
    ),
    "jmvae": Model(
        partial(coordination_model, kind=coordination.JMVAE),
        "JMVAE",
        COORDINATED,
        coordination.JMVAE.options,
        _SUZUKI,
        "A joint encoder, and no experts.",
    ),
    "mmjsd": Model(
        jensen_shannon.jensen_shannon_model,
        "mmJSD",
        MIXTURE,
        jensen_shannon.OPTIONS,
        Citation("sutter2020multimodal", "Sutter et al. (2020)"),
        "A mixture, and the Jensen-Shannon divergence to a dynamic prior.",
    ),
    "mmvm": Model(
        mmvm.mixture_prior_model,
        "MMVM",
        PRIVATE,
        mmvm.OPTIONS,
        Citation("sutter2024unity", "Sutter et al. (2024)"),
        "One VAE for each modality, tied by a prior that is the mixture of experts.",
    ),
    "wb_vae": Model(
        partial(mixture_model, mixture=subsets.full_set, pooling="barycentre"),
        "WB-VAE",
        POOLED,
        {},
        _QIU,
        "The joint posterior is the Wasserstein barycentre of the experts.",
    ),
    "mwb_vae": Model(
        partial(mixture_model, mixture=subsets.powerset, pooling="barycentre"),
        "MWB-VAE",
        POOLED,
        mixtures.POOLED_OPTIONS,
        _QIU,
        "The joint posterior is the mixture of the barycentres of all subsets.",
    ),
    "code_vae": Model(
        partial(mixture_model, mixture=subsets.powerset, pooling="dependent"),
        "CoDE-VAE",
        POOLED,
        mixtures.CODE_OPTIONS,
        Citation("mancisidor2025aggregation", "Mancisidor et al. (2025)"),
        "A mixture over subsets of experts whose errors are correlated.",
    ),
    "helvae": Model(
        partial(mixture_model, mixture=subsets.full_set, pooling="hoelder"),
        "HELVAE",
        POOLED,
        mixtures.HELVAE_OPTIONS,
        _VO,
        "The joint posterior has the moments of the Hölder pool of the experts.",
    ),
    "mohelvae": Model(
        partial(mixture_model, mixture=subsets.powerset, pooling="hoelder"),
        "MoHELVAE",
        POOLED,
        mixtures.MOHELVAE_OPTIONS,
        _VO,
        "The joint posterior is the mixture of such moments over all subsets.",
    ),
    "contrastive": Model(
        contrastive.contrastive_model,
        "contrastive code",
        PRIVATE,
        contrastive.OPTIONS,
        Citation(
            "mmvae_jax",
            "this project",
            (
                *("oord2018representation", "zhang2026disentanglement"),
                *("liu2023flow", "lipman2023flow"),
            ),
        ),
        "A contrastive code for what is shared, private vectors for the rest.",
    ),
    "code_flow": Model(
        code_flow.code_flow_model,
        "code and flows",
        PRIVATE,
        code_flow.OPTIONS,
        Citation(
            "mmvae_jax",
            "this project",
            ("oord2018representation", "liu2023flow", "lipman2023flow"),
        ),
        "A contrastive code, and flows that draw missing latent vectors given it.",
    ),
    "jnf": Model(
        jnf.jnf_model,
        "JNF",
        COORDINATED,
        jnf.OPTIONS,
        Citation(
            "senellart2023improving",
            "Senellart et al. (2023)",
            _JNF,
        ),
        "A joint encoder, and a normalizing flow for the posterior of each modality.",
    ),
    "jnf_shared": Model(
        partial(jnf.jnf_model, is_shared=True),
        "JNF-Shared",
        COORDINATED,
        jnf.SHARED_OPTIONS,
        Citation(
            "senellart2025bridging",
            "Senellart & Allassonnière (2025)",
            (*_JNF, "oord2018representation"),
        ),
        "JNF whose posterior of one modality sees a code of it, learned by contrast.",
    ),
    "latent_flow": Model(
        latent_flow.latent_flow_model,
        "latent flow",
        PRIVATE,
        latent_flow.OPTIONS,
        Citation(
            "bounoua2024multi",
            "Bounoua et al. (2024)",
            ("liu2023flow", "lipman2023flow", "bao2023one"),
        ),
        "A VAE for each modality, and one flow that draws missing latent vectors.",
    ),
    "nexus": Model(
        nexus.nexus_model,
        "Nexus",
        PRIVATE,
        nexus.OPTIONS,
        Citation("vasco2022leveraging", "Vasco et al. (2022)"),
        "A VAE for each modality, and one above them of the mean of their messages.",
    ),
    "custom": Model(
        mixtures.custom_model,
        "custom subsets",
        OTHER,
        mixtures.CUSTOM_OPTIONS,
        _DAUNHAWER,
        "Any mixture of products of subsets that you name.",
    ),
}


def default_options(name: str) -> dict[str, Any]:
    """The options of a model with their defaults.

    Raises:
      ArgumentError: the model is unknown.
    """
    if name not in MODELS:
        known = ", ".join(MODELS)
        raise ArgumentError(
            "unknown model {!r} in {name}; choose one of {}", name, known
        )
    return {field: option.default for field, option in MODELS[name].options.items()}


def check(config: Any) -> None:
    """Checks the model of a config without data.

    Raises:
      UsageError: the model is unknown, or an option is unknown or invalid.
    """
    name, given = config.model.name, config.model.options
    with fields_of("config.model"):
        read = default_options(name)
    if config.model.latent_dim < 1:
        raise UsageError(
            f"config.model.latent_dim must be >= 1, got {config.model.latent_dim}"
        )
    for field in given:
        if field not in read:
            raise UsageError(unread(name, field))
    for mistake in mistakes(MODELS[name].options, given, "config.model.options"):
        raise UsageError(mistake)


def unread(name: str, field: str) -> str:
    """The error message for an unknown option of a model."""
    return (
        f"config.model.options.{field} is no option of the model {name!r}, which reads "
        f"{', '.join(MODELS[name].options) or 'none'}; a model is chosen, with its "
        f"options, by --config=FILE.py:{name}"
    )


def make_model(config: Any, shapes: Mapping[str, tuple[int, ...]]) -> MultimodalVAE:
    """Builds the model of a config.

    Args:
      config: with the fields `model`, `modality` and `modalities` of configs/base.py;
        missing options have their defaults.
      shapes: modality -> shape of one example, in the order of the M axis.

    Raises:
      UsageError: the model or one of its parts is unknown.
    """
    check(config)
    name = config.model.name
    for modality, own in config.modalities.items():
        if modality not in shapes:
            raise UsageError(
                f"config.modalities names {modality}, but the data have "
                f"{', '.join(shapes)}"
            )
        unknown = sorted(set(own) - set(config.modality))
        if unknown:
            raise UsageError(
                f"config.modalities.{modality} has no field {unknown[0]!r}; choose "
                f"from {', '.join(config.modality)}"
            )
    shapes = parts.shapes_of_counts(config, shapes)
    weights = parts.likelihood_weights(config, shapes)
    options = default_options(name) | dict(config.model.options.items())
    model = MODELS[name].build(config, shapes, options)
    if model.mixture_posterior is parts.undefined:
        model = model._replace(mixture_posterior=partial(_only_component, model))
    if model.posterior_components is parts.undefined:
        model = model._replace(posterior_components=model.mixture_posterior)
    return _with_missing(_in_nats(model, weights))


def _only_component(
    model: MultimodalVAE, params: Params, experts: Distribution, subset: Array
) -> tuple[Distribution, Array]:
    """`mixture_posterior` of a model whose posterior is not a mixture."""
    # It needs no key.
    return parts.only_component(model.posterior(params, experts, subset, None))


def _in_nats(model: MultimodalVAE, weights: Mapping[str, float]) -> MultimodalVAE:
    """Divides the log-likelihood terms of a model by their weights."""

    def in_nats(objective: Callable[..., Any]) -> Callable[..., Any]:
        def unweighted(*args: Any) -> tuple[Array, Any]:
            value, terms = objective(*args)
            if isinstance(terms, ObjectiveTerms):
                terms = parts.unweighted(terms, weights)
            return value, terms

        return unweighted

    return model._replace(
        objective=in_nats(model.objective),
        stages=tuple(
            stage._replace(objective=in_nats(stage.objective)) for stage in model.stages
        ),
    )


def _with_missing(model: MultimodalVAE) -> MultimodalVAE:
    """Lets a model take batches with missing modalities."""
    clean = partial(parts.without_missing, model.modalities)

    def of_clean(fn: Callable[..., Any]) -> Callable[..., Any]:
        return lambda params, batch, *rest: fn(params, clean(batch), *rest)

    def begin_of_clean(begin: Callable[..., Params]) -> Callable[..., Params]:
        return lambda params, fold: begin(
            params,
            lambda f, first: fold(lambda carry, batch: f(carry, clean(batch)), first),
        )

    def after_clean(after_step: Callable[..., Params]) -> Callable[..., Params]:
        return lambda params, batch, step: after_step(params, clean(batch), step)

    return model._replace(
        objective=of_clean(model.objective),
        stages=tuple(
            stage._replace(
                objective=of_clean(stage.objective),
                begin=stage.begin and begin_of_clean(stage.begin),
                after_step=stage.after_step and after_clean(stage.after_step),
            )
            for stage in model.stages
        ),
        encode=of_clean(model.encode),
        log_likelihood=lambda params, z, batch: model.log_likelihood(
            params, z, clean(batch)
        ),
    )

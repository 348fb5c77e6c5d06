"""Every setting of a run, with its unit and the paper's value.

The files of configs/ start from `get_config` and change what differs.
"""

from ml_collections import ConfigDict

from mmvae_jax import models
from mmvae_jax.errors import fields_of


def get_config() -> ConfigDict:
    """The settings of the paper's App. C.1 that no data set changes."""
    return ConfigDict(
        dict(
            model=dict(
                name="mopoe",  # one of mmvae_jax.models.MODELS
                # D; the unimodal VAEs get D // M each, and of models with private
                # vectors (mmvae_plus, dmvae, contrastive) it is that of the shared one;
                # of code_flow and latent_flow it is that of each modality.
                latent_dim=512,
                # Options that this model alone reads: their table is beside its
                # builder in mmvae_jax/models/; filled in by `parse_arg`.
                options=ConfigDict(),
            ),
            # Settings of every modality ...
            modality=dict(
                network="conv",  # one of mmvae_jax.networks.NETWORKS
                network_options=ConfigDict(),  # fields of those modules
                likelihood="laplace",  # a row of the table in docs/models.md
                # Of laplace and gaussian; where it is learned, at the start. Sutter et
                # al. (2021), and MNIST-SVHN of Shi et al. (2019): 0.75; images of CUB
                # in Shi et al. and MMVAE+: 0.01.
                likelihood_scale=0.75,
                # Weight of log p(x_m|z) in the loss, and nowhere else: what is logged
                # and evaluated stays in nats. 1 is the bound, and PolyMNIST's. Of CUB,
                # Shi et al.: images 32 / 12288 = 0.0026, captions 1; MMVAE+: 0.0026
                # and 5. Others: docs/models.md.
                likelihood_weight=1.0,
                # Of categorical: whether positions after <eos> count, as published.
                count_padding=True,
                # Of poisson and negative_binomial: the number of counts of an example
                # that is generated, of which the decoder gives shares; the likelihood
                # is given the sum of what is observed (scVI). 0 = it gives the means.
                library_size=0.0,
            ),
            # ... and what differs for one: modalities.m0 = {"likelihood": ...}.
            modalities=ConfigDict(),
            data=dict(
                name="polymnist",  # a folder of datasets/
                data_dir="data",  # where prepared data sets are kept
                digits="mnist",  # mnist (60,000 / 10,000), sklearn, published
                digits_dir="",  # the four idx files of MNIST; "" = download
                backgrounds_dir="",  # one image a modality; "" = procedural
                published_dir="",  # for digits="published": {train,test}/m{i}/
                num_modalities=5,  # M
                use_modalities=0,  # only the first ones of them; 0 = all
                # Probability that a modality of an example is missing, of which one at
                # least is always there: of training and of test examples.
                missing=0.0,
                missing_test=0.0,
                image_size=28,  # pixels
                translate_scale=1.0,  # size of a translated digit; 1 = in place
                # Digits of half the image's size in one of its quarters: the same
                # one in all modalities ("shared"), or drawn for each ("private").
                quadrant="",
                # Modalities beside the images that show one attribute alone:
                # ("digit", "quadrant"), each a token.
                label_modalities=(),
                repeated=False,  # the same background image for all modalities
                pairings=1,  # tuples made of each digit
                # Per cent of the training digits that make the test split in place of
                # the test digits, for choices; 0 = none.
                validation=0,
                seed=0,  # of pairing, crops, translations, and what is missing
            ),
            sweep=dict(  # the grid of members trained in one program
                beta=(1.0,),  # paper: 3e-4, 3e-3, 3e-1, 1, 3, 9
                learning_rate=(5e-4,),  # Adam; paper: 5e-4
                seed=(0,),  # paper: three seeds
            ),
            train=dict(
                num_steps=117_000,  # 500 epochs of 234 steps
                batch_size=256,  # examples; paper: 256
                data_seed=0,  # of the order of the data, shared by all members
                # Precision of matrix products: the device's "default", "float32",
                # and on GPUs "tensorfloat32" or "bfloat16"; all else is float32.
                precision="default",
                # Steps in which beta rises linearly from 0 to that of each member; 0 =
                # it is constant. Evaluation has no part in it.
                beta_warmup_steps=0,
                # "constant", or "cosine" to the factor learning_rate_final at the last
                # step; before that, learning_rate_warmup_steps of a linear rise from 0
                # to each member's learning rate.
                learning_rate_schedule="constant",
                learning_rate_warmup_steps=0,
                learning_rate_final=0.0,
                clip_norm=0.0,  # largest norm of a member's gradient; 0 = any
                log_every_steps=234,
                eval_every_steps=0,  # 0 = only at the end
                checkpoint_every_steps=2_340,
                checkpoints_kept=2,  # the newest ones
                # How members are mapped ("vmap", "map", "unroll") and how many
                # steps one call of the compiled program may take; "auto" and 0
                # choose by device and network, and the choice is logged.
                mapping="auto",
                steps_per_call=0,
                # With "vmap": a divisor of a device's members; 0 = what fits it.
                members_at_once=0,
                # Devices for the members, a divisor of their number, and for each
                # batch, a divisor of its size; 0 = automatic. No part of what a run
                # is: it may be continued on other devices.
                mesh=(0, 0),
                # Where the training data are: "device", or "host" and sent as they
                # are due; "auto": on the host if they take more than a quarter of a
                # device's memory. No part of what a run is, either.
                data_on="auto",
            ),
            log=dict(  # trackers beside TensorBoard; no part of what a run is
                wandb="",  # Weights & Biases: "offline", "online"; "" = not used
                mlflow="",  # address of MLflow, "sqlite:///FILE"; "" = not used
            ),
            classifier=dict(  # the digit classifiers behind the coherences
                network="conv",  # one of mmvae_jax.networks.CLASSIFIERS
                num_steps=2_000,
                batch_size=256,
                learning_rate=1e-3,
                seed=0,
            ),
            matcher=dict(  # the networks behind the metric "matching"; no labels
                network="conv",  # one of mmvae_jax.networks.CLASSIFIERS
                feature_dim=64,  # outputs of that network
                num_steps=2_000,  # of all modalities together
                batch_size=128,  # tuples; the others of the batch are negatives
                learning_rate=2e-3,
                seed=0,
            ),
            eval=dict(
                # Names of docs/evaluation.md; ("all",) = all that the data allow, of
                # commands.
                metrics=(
                    "elbo",
                    "coherence",
                    "frechet",
                    "swd",
                    "log_likelihood",
                    "linear_probe",
                ),
                batch_size=500,  # examples
                num_examples=0,  # of the test split; 0 = all
                importance_samples=12,  # K of the log-likelihood; paper: 12
                proposal="joint",  # of the log-likelihood: joint, mixture
                # Weights of the metric "fid", not in the default; "" = downloaded
                # to data_dir/weights/ if not there.
                inception_weights="",
                # Source of unconditional examples: the model's "prior"; or
                # once more from a density of its latents, and both are told, "gmm" (a
                # mixture of Gaussians) or "flow" (a rectified flow).
                sampler="prior",
                # Components of "gmm", of which held-out training latents choose.
                sampler_components=(10, 25, 50),
                sampler_steps=2_000,  # of the training of "flow"
                seed=0,
            ),
        )
    )


def parse_arg(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies the part of ``--config=file.py:arg``: "model" or "model,network=name".

    The options of the model are those that it reads, at their defaults.

    Raises:
      ValueError: an unknown or misspelt part.
    """
    name, *rest = [part.strip() for part in (arg or config.model.name).split(",")]
    config.model.name = name
    with fields_of("config.model"):
        config.model.options = ConfigDict(models.default_options(name))
    for part in rest:
        key, _, value = part.partition("=")
        if key != "network" or not value:
            raise ValueError(
                f"unknown config argument {part!r}; write model or "
                "model,network=name, for instance mopoe,network=resnet"
            )
        if value != config.modality.network:
            config.modality.network = value
            # They were those of the other network.
            config.modality.network_options = ConfigDict()
    return config

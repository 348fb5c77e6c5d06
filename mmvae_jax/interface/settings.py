"""Every setting of a run, with its unit and the paper's value.

The files of configs/ start from `get_config` and change some fields.
"""

from ml_collections import ConfigDict

from mmvae_jax import models
from mmvae_jax.errors import fields_of


def get_config() -> ConfigDict:
    """The default settings, from the paper's App. C.1."""
    return ConfigDict(
        dict(
            model=dict(
                name="mopoe",  # one of mmvae_jax.models.MODELS
                # D. Unimodal VAEs have D // M each. In models with private vectors
                # (mmvae_plus, dmvae, contrastive) it is the shared dimension; in
                # code_flow and latent_flow, the dimension of each modality.
                latent_dim=512,
                # Options of this model, filled in by `parse_arg`; their table is beside
                # the model's builder in mmvae_jax/models/.
                options=ConfigDict(),
            ),
            # Settings of every modality ...
            modality=dict(
                network="conv",  # one of mmvae_jax.networks.NETWORKS
                network_options=ConfigDict(),  # fields of the network's modules
                likelihood="laplace",  # a row of the table in docs/models.md
                # Scale of laplace and gaussian; if learned, its initial value. Sutter
                # et al. (2021), and MNIST-SVHN of Shi et al. (2019): 0.75; images of
                # CUB in Shi et al. and MMVAE+: 0.01.
                likelihood_scale=0.75,
                # Weight of log p(x_m|z), in the loss only: logs and metrics stay in
                # nats. PolyMNIST: 1, the unweighted bound. CUB, Shi et al.: images
                # 32 / 12288 = 0.0026, captions 1; MMVAE+: 0.0026 and 5. Others:
                # docs/models.md.
                likelihood_weight=1.0,
                # For categorical: whether positions after <eos> count, as published.
                count_padding=True,
                # For poisson and negative_binomial: the total count of a generated
                # example, of which the decoder gives the fractions; the likelihood
                # uses the observed total (scVI). 0 = the decoder gives the means.
                library_size=0.0,
            ),
            # ... and changes for one modality: modalities.m0 = {"likelihood": ...}.
            modalities=ConfigDict(),
            data=dict(
                name="polymnist",  # a folder of datasets/
                data_dir="data",  # where prepared data sets are kept
                digits="mnist",  # mnist (60,000 / 10,000), sklearn, published
                digits_dir="",  # the four idx files of MNIST; "" = download
                backgrounds_dir="",  # one image per modality; "" = procedural
                published_dir="",  # for digits="published": {train,test}/m{i}/
                num_modalities=5,  # M
                use_modalities=0,  # use only the first ones; 0 = all
                # Probability that a modality of a training or test example is missing;
                # each example keeps at least one modality.
                missing=0.0,
                missing_test=0.0,
                image_size=28,  # pixels
                translate_scale=1.0,  # relative size of a moved digit; 1 = not moved
                # Digits of half the image's size in one of its quarters: the same
                # quarter in all modalities ("shared"), or one for each ("private").
                quadrant="",
                # Additional modalities of one token that show one attribute:
                # ("digit", "quadrant").
                label_modalities=(),
                repeated=False,  # the same background image for all modalities
                pairings=1,  # tuples made from each digit
                # Percentage of the training digits that replace the test digits, for
                # model selection; 0 = none.
                validation=0,
                seed=0,  # of pairing, crops, translations, and missing modalities
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
                # constant. Evaluation does not use it.
                beta_warmup_steps=0,
                # "constant", or "cosine" down to the factor learning_rate_final at the
                # last step; both after learning_rate_warmup_steps of a linear rise from
                # 0 to each member's learning rate.
                learning_rate_schedule="constant",
                learning_rate_warmup_steps=0,
                learning_rate_final=0.0,
                clip_norm=0.0,  # largest norm of a member's gradient; 0 = no limit
                log_every_steps=234,
                # 0 = only at the end. Of a model in stages, evaluations before the last
                # stage are of a model whose flows, for instance, are untrained.
                eval_every_steps=0,
                checkpoint_every_steps=2_340,
                checkpoints_kept=2,  # the newest ones
                # How members are mapped ("vmap", "map", "unroll"), and the most steps
                # of one call of the compiled program. "auto" and 0 choose by device and
                # network, and log the choice.
                mapping="auto",
                steps_per_call=0,
                # With "vmap": members at a time, a divisor of a device's members; 0 =
                # as many as fit the device.
                members_at_once=0,
                # Devices for the members (a divisor of their number) and for each batch
                # (a divisor of its size); 0 = automatic. May change when a run is
                # resumed.
                mesh=(0, 0),
                # Memory of the training data: "device", or "host", from which batches
                # are sent; "auto": host if they take more than a quarter of a device's
                # memory. May change when a run is resumed.
                data_on="auto",
            ),
            log=dict(  # trackers beside TensorBoard; may change when a run is resumed
                wandb="",  # Weights & Biases: "offline", "online"; "" = not used
                mlflow="",  # address of MLflow, "sqlite:///FILE"; "" = not used
            ),
            classifier=dict(  # the digit classifiers for coherence
                network="conv",  # one of mmvae_jax.networks.CLASSIFIERS
                num_steps=2_000,
                batch_size=256,
                learning_rate=1e-3,
                seed=0,
            ),
            matcher=dict(  # the networks of the metric "matching"; no labels
                network="conv",  # one of mmvae_jax.networks.CLASSIFIERS
                feature_dim=64,  # outputs of that network
                num_steps=2_000,  # for all modalities together
                batch_size=128,  # tuples; the others in the batch are negatives
                learning_rate=2e-3,
                seed=0,
            ),
            eval=dict(
                # Names in docs/evaluation.md; in commands, ("all",) = all that the data
                # allow.
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
                proposal="joint",  # proposal of the log-likelihood: joint, mixture
                # Weights of the optional metrics "fid" and "conditional_fid"; "" =
                # data_dir/weights/, downloaded if missing.
                inception_weights="",
                # Source of unconditional examples: the model's "prior"; or in addition
                # a density fitted to its latents: "gmm" (a mixture of Gaussians) or
                # "flow" (a rectified flow).
                sampler="prior",
                # Numbers of components of "gmm"; held-out training latents select one.
                sampler_components=(10, 25, 50),
                sampler_steps=2_000,  # training steps of "flow"
                seed=0,
            ),
        )
    )


def parse_arg(config: ConfigDict, arg: str) -> ConfigDict:
    """Applies the part of ``--config=file.py:arg``: "model" or "model,network=name".

    The model's options get their defaults.

    Raises:
      ValueError: an unknown part.
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
            # The options belonged to the other network.
            config.modality.network_options = ConfigDict()
    return config

"""The papers' figures in hours on two CPU cores, without a download.

    make figures SCALE=demo

PolyMNIST's recipe on scikit-learn's 1,797 handwritten digits, in five modalities of
16 x 16 pixels, with small networks. Images, networks, the number of digits and training
are all smaller than in the paper, so that results may differ from the paper's. Images
with captions are `shapes` and, with --cub_dir, some minutes of CUB. The figures of the
first paper take about an hour, and the other models of "family" and "inputs" longer:
docs/figures.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """All fields of a scale; the other scales change only values."""
    return ConfigDict(
        dict(
            description=(
                "demo scale: 16 x 16 pixels, 1,797 digits, small networks; "
                "not the paper's data"
            ),
            # Betas of the figures over beta. Paper: 3e-4, 3e-3, 3e-1, 1, 3, 9.
            beta=(3e-4, 3e-3, 0.3, 1.0, 3.0, 9.0),
            seed=(0, 1, 2),
            # For Figures 3 and 11; all other figures use the last. Paper: 2 to 5.
            num_modalities=(2, 3, 4, 5),
            # Metrics; add "fid" if the Inception weights are available.
            metrics=(
                "elbo",
                "coherence",
                "matching",
                "frechet",
                "swd",
                "log_likelihood",
                "linear_probe",
            ),
            metrics_by_modalities=("elbo", "frechet", "swd"),
            # The columns of the figures. Each has a file of configs/, changes to it,
            # the beta of Figures 3 and 11, and the beta of the samples in Figures 9 and
            # 10 (the paper does not state its own).
            columns=("polymnist", "translated"),
            datasets=dict(
                polymnist=dict(
                    title="PolyDigits",
                    config="polydigits",
                    changes=dict(),
                    beta_by_modalities=1.0,
                    beta_of_samples=0.3,
                ),
                translated=dict(
                    title="Translated-PolyDigits",
                    config="polydigits",
                    changes=dict(data=dict(translate_scale=0.75)),
                    beta_by_modalities=0.3,
                    beta_of_samples=0.3,
                ),
            ),
            # Changes for every run.
            changes=dict(
                model=dict(latent_dim=60),
                modality=dict(network_options=dict(widths=(128,))),
                data=dict(num_modalities=5),
                train=dict(num_steps=1_500, checkpoint_every_steps=1_500),
                eval=dict(num_examples=1_000),
            ),
            # Changes for Figure 12: K samples, and M M K decodings per step.
            official=dict(
                num_modalities=3,
                changes=dict(model=dict(options=dict(num_samples=5))),
            ),
            # Changes for single models. Models with private vectors: the same total
            # number of latent dimensions as others; one sample, as in the published
            # runs, and the gradient that is unbiased for any beta.
            models=dict(
                mmvae_plus=dict(
                    model=dict(
                        latent_dim=10,
                        options=dict(private_dim=10, num_samples=1, estimator="iwae"),
                    ),
                ),
                cmvae=dict(
                    model=dict(
                        latent_dim=10, options=dict(private_dim=10, estimator="iwae")
                    ),
                ),
                dmvae=dict(model=dict(latent_dim=10, options=dict(private_dim=10))),
                contrastive=dict(
                    model=dict(latent_dim=10, options=dict(private_dim=10))
                ),
                # The networks and steps of all models, unlike in their own configs,
                # and the stages of these.
                latent_flow=dict(
                    model=dict(latent_dim=12),
                    modality=dict(network="mlp", network_options=dict(widths=(128,))),
                ),
                code_flow=dict(
                    model=dict(latent_dim=12),
                    modality=dict(network="mlp", network_options=dict(widths=(128,))),
                ),
            ),
            # The known distribution of the figure of the theorem.
            discrete=dict(config="discrete", changes=dict()),
            # Images with captions: additional columns of Figures 2, 4 and 7 to 10,
            # independent of the settings above. Each has a file of configs/, changes to
            # it, its sweep and metrics, and the beta of the samples. CUB is trained
            # only with --cub_dir.
            pairs=dict(
                description=(
                    "pairs of images and captions: Shapes of 32 x 32 pixels, networks "
                    "with one hidden layer, 8 epochs; CUB, if any, a third of an epoch"
                ),
                columns=("shapes", "cub"),
                datasets=dict(
                    shapes=dict(
                        title="Shapes",
                        config="shapes",
                        beta=(0.1, 1.0, 9.0),
                        seed=(0, 1, 2),
                        metrics=(
                            "elbo",
                            "attributes",
                            "captions",
                            "matching",
                            "swd",
                            "log_likelihood",
                        ),
                        changes=dict(
                            modality=dict(
                                network="mlp", network_options=dict(widths=(256,))
                            ),
                            modalities=dict(
                                caption=dict(
                                    network="mlp", network_options=dict(widths=(256,))
                                ),
                            ),
                            train=dict(num_steps=1_500, checkpoint_every_steps=1_500),
                            eval=dict(num_examples=1_000),
                        ),
                        beta_of_samples=1.0,
                    ),
                    cub=dict(
                        title="CUB, 300 steps",
                        config="cub",
                        beta=(1.0,),
                        seed=(0,),
                        metrics=(
                            "elbo",
                            "captions",
                            "matching",
                            "swd",
                            "log_likelihood",
                        ),
                        changes=dict(
                            modality=dict(
                                network_options=dict(channels=(32, 64, 128, 256))
                            ),
                            train=dict(
                                num_steps=300, batch_size=64, log_every_steps=50
                            ),
                            eval=dict(num_examples=300),
                        ),
                        beta_of_samples=1.0,
                    ),
                ),
            ),
        )
    )

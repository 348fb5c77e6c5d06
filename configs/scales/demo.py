"""The papers' figures in hours on two CPU cores, without a download.

    make figures SCALE=demo

scikit-learn's 1,797 handwritten digits by PolyMNIST's recipe, in five modalities of
16 x 16 pixels, with small networks. Everything is smaller than in the paper: the
images, the networks, the number of digits, the training. Images with captions are
`shapes`, and, where --cub_dir names them, some minutes of CUB. Its figures say what
happens here, and not what the paper's would say. Those of the first paper take about
an hour, and the other models of "family" and "inputs" longer: docs/figures.md.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """Every field of a scale; the other scales change values only."""
    return ConfigDict(
        dict(
            description=(
                "demo scale: 16 x 16 pixels, 1,797 digits, small networks; "
                "not the paper's data"
            ),
            # Betas of the figures over beta. Paper: 3e-4, 3e-3, 3e-1, 1, 3, 9.
            beta=(3e-4, 3e-3, 0.3, 1.0, 3.0, 9.0),
            seed=(0, 1, 2),
            # Of Figures 3 and 11; the last is that of all other figures. Paper: 2 to 5.
            num_modalities=(2, 3, 4, 5),
            # What is evaluated; "fid" as well where the Inception weights are at hand.
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
            # The columns of the figures. Of each: a file of configs/, what differs from
            # it, the beta of Figures 3 and 11, and the beta of the samples in Figures
            # 9 and 10 (the paper does not state its own).
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
            # What differs in every run ...
            changes=dict(
                model=dict(latent_dim=60),
                modality=dict(network_options=dict(widths=(128,))),
                data=dict(num_modalities=5),
                train=dict(num_steps=1_500, checkpoint_every_steps=1_500),
                eval=dict(num_examples=1_000),
            ),
            # ... and in those of Figure 12: K samples and M M K decodings a step.
            official=dict(
                num_modalities=3,
                changes=dict(model=dict(options=dict(num_samples=5))),
            ),
            # ... and in those of a model with private vectors: as many latent
            # dimensions in all as the others; one sample, as in the published runs,
            # and the gradient that is unbiased for any beta.
            models=dict(
                mmvae_plus=dict(
                    model=dict(
                        latent_dim=10,
                        options=dict(private_dim=10, num_samples=1, estimator="iwae"),
                    ),
                ),
                dmvae=dict(model=dict(latent_dim=10, options=dict(private_dim=10))),
                # Their own configs have other networks, and more steps.
                latent_flow=dict(
                    model=dict(latent_dim=12),
                    modality=dict(network="mlp", network_options=dict(widths=(128,))),
                ),
                code_flow=dict(
                    model=dict(latent_dim=12, options=dict(single_stage=True)),
                    modality=dict(network="mlp", network_options=dict(widths=(128,))),
                ),
            ),
            # The known distribution on which the theorem is drawn.
            discrete=dict(config="discrete", changes=dict()),
            # Images with captions: further columns of Figures 2, 4 and 7 to 10, to
            # which nothing of the above applies. Of each: a file of configs/, what
            # differs from it, its sweep and metrics, and the beta of the samples. CUB
            # is trained where --cub_dir names its photographs and captions.
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

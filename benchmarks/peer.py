"""The peer of the benchmarks: the same models in MultiVae, on PyTorch.

MultiVae 1.0.3 (Senellart et al., 2025), of the extra `bench`, has the convolutional
networks of the published PolyMNIST code as we do; the joint encoder of JMVAE is
written here to be like ours. Parameters are copied over, so that both compute the
same loss.
"""

import contextlib
import functools
import importlib.util
import multiprocessing
import os
import subprocess
import sys

import jax
import numpy as np

# Ours -> MultiVae's model, its config's fields, and its loss over ours.
MODELS = {
    "mopoe": ("MoPoE", {"beta": 1.0}),
    "mvae": ("MVAE", {"beta": 1.0, "use_subsampling": False, "warmup": 0}),
    "mvtcae": ("MVTCAE", {"beta": 2.5, "alpha": 5 / 6}),
    "jmvae_kl": ("JMVAE", {"beta": 1.0, "alpha": 0.1, "warmup": 0}),
    "crmvae": ("CRMVAE", {"beta": 2.5}),
}


@functools.cache
def why_not():
    """Package that is missing for the peer; None if it can be run."""
    for name in ("torch", "multivae"):
        if importlib.util.find_spec(name) is None:
            return f"not installed: {name} (extra bench)"
    # In a process of its own, as later: it may lack what these need.
    done = subprocess.run(
        [sys.executable, "-c", "import torch, multivae.models, multivae.metrics"],
        stderr=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        reason = (done.stderr.splitlines() or [f"exit code {done.returncode}"])[-1]
        return f"cannot be imported: {reason}"
    return None


class Peer:
    """One of MODELS in a process of its own, as its users run it.

    Memory is managed there as PyTorch finds it, not as `command.keep_memory` does here.

    Args:
      name: a key of MODELS.
      config: of our model.
      shapes: modality -> shape.
      params: of our model.
      images: modality -> uint8 [N, H, W, C].

    Attributes:
      num_parameters: of all networks.
    """

    def __init__(self, name, config, shapes, params, images):
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        is_gpu = jax.default_backend() == "gpu"
        arguments = (name, config, shapes, jax.device_get(params), images)
        given = (theirs, is_gpu, arguments)
        self._process = context.Process(target=_serve, args=given, daemon=True)
        self._process.start()
        theirs.close()
        self.num_parameters = self._pipe.recv()

    def _ask(self, name, *arguments):
        self._pipe.send((name, arguments))
        return self._pipe.recv()

    def loss(self, rows):
        """The loss of these examples, on our scale."""
        return self._ask("loss_of", rows)

    def steps(self, picks):
        """A step of Adam on each of these lists of examples."""
        self._ask("steps", picks)

    def embed(self, num, batch_size, is_returned=True):
        """Means of the posterior of the first `num` examples, by `encode`, [num, D]."""
        return self._ask("embed", num, batch_size, is_returned)

    def prepare_evaluation(self, *arguments):
        """Arguments of `_evaluator` but the first, for `evaluate`."""
        self._ask("prepare_evaluation", *arguments)

    def evaluate(self):
        """All coherences of MultiVae's evaluator."""
        self._ask("evaluate")

    def close(self):
        """Ends the process."""
        self._process.terminate()
        self._process.join()


def _serve(pipe, is_gpu, arguments):
    """Requests of a Peer to its process."""
    peer = _Peer(is_gpu, *arguments)
    pipe.send(peer.num_parameters)
    with contextlib.suppress(EOFError):  # the other side is gone
        while True:
            name, given = pipe.recv()
            pipe.send(getattr(peer, name)(*given))


class _Peer:
    """One of MODELS with parameters of ours, trained by Adam on uint8 images."""

    def __init__(self, is_gpu, name, config, shapes, params, images):
        import torch

        torch.set_num_threads(os.cpu_count())
        self.torch = torch
        # Where ours are; what is asynchronous there is waited for in `steps`.
        is_gpu = is_gpu and torch.cuda.is_available()
        self.device = torch.device("cuda" if is_gpu else "cpu")
        if is_gpu:  # TF32, as our default there is
            torch.set_float32_matmul_precision("high")
        self.name, self.num_modalities = name, len(shapes)
        self.images = {
            m: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2))).to(
                self.device
            )
            for m, x in images.items()
        }
        self.model = _build(name, config, shapes)
        _copy(self.model, params)
        self.model.to(self.device)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=5e-4)
        self.num_parameters = sum(p.numel() for p in self.model.parameters())

    def loss(self, rows):
        """The loss of these examples, on our scale, a tensor."""
        from multivae.data.datasets.base import MultimodalBaseDataset

        rows = self.torch.from_numpy(np.asarray(rows, np.int64)).to(self.device)
        batch = {m: x[rows].float() / 255 for m, x in self.images.items()}
        # What warms up has done so.
        value = self.model(MultimodalBaseDataset(batch), epoch=1_000).loss
        if self.name == "crmvae":
            # It adds up the examples, and divides by the number of terms.
            value = value * (self.num_modalities + 1) / len(rows)
        return value

    def steps(self, picks):
        """A step of Adam on each of these lists of examples."""
        for rows in picks:
            self.optimizer.zero_grad()
            self.loss(rows).backward()
            self.optimizer.step()
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def loss_of(self, rows):
        """The loss as a number; products in float32 on every device."""
        cudnn = self.torch.backends.cudnn
        before = self.torch.get_float32_matmul_precision(), cudnn.allow_tf32
        self.torch.set_float32_matmul_precision("highest")
        cudnn.allow_tf32 = False
        try:
            return float(self.loss(rows).detach())
        finally:
            self.torch.set_float32_matmul_precision(before[0])
            cudnn.allow_tf32 = before[1]

    def embed(self, num, batch_size, is_returned):
        """As of `Peer`."""
        from multivae.data.datasets.base import MultimodalBaseDataset

        self.model.eval()
        found = []
        with self.torch.inference_mode():
            for start in range(0, num, batch_size):
                rows = slice(start, min(start + batch_size, num))
                batch = {m: x[rows].float() / 255 for m, x in self.images.items()}
                inputs = MultimodalBaseDataset(batch)
                z = self.model.encode(inputs, return_mean=True, flatten=True).z
                found.append(z.cpu().numpy())
        found = np.concatenate(found)
        return found if is_returned else None

    def prepare_evaluation(self, *arguments):
        """As of `Peer`."""
        self.evaluate = _evaluator(self, *arguments)


def _evaluator(peer, images, labels, batch_size, folder):
    """MultiVae's evaluator of coherences, with the published digit classifiers.

    They have random parameters: how long they take is all that is asked.

    Returns:
      A function () -> None that evaluates everything that the evaluator has.
    """
    from multivae.data.datasets.base import MultimodalBaseDataset
    from multivae.metrics import CoherenceEvaluator, CoherenceEvaluatorConfig

    torch = peer.torch
    data = {
        m: torch.from_numpy(x.transpose(0, 3, 1, 2).astype(np.float32) / 255)
        for m, x in images.items()
    }
    dataset = MultimodalBaseDataset(data, torch.from_numpy(labels.astype(np.int64)))
    options = CoherenceEvaluatorConfig(
        batch_size=batch_size,
        include_recon=True,
        nb_samples_for_joint=len(labels),
        num_classes=10,
    )
    found = CoherenceEvaluator(
        peer.model.eval(),
        {m: _classifier() for m in images},
        dataset,
        output=folder,
        eval_config=options,
    )

    def evaluate():
        with torch.no_grad():
            found.cross_coherences()
            found.joint_coherence()

    return evaluate


def _classifier():
    """The digit classifier published with PolyMNIST."""
    from torch import nn

    return nn.Sequential(
        nn.Conv2d(3, 10, 4, stride=2, padding=1),
        nn.Dropout2d(0.5),
        nn.ReLU(),
        nn.Conv2d(10, 20, 4, stride=2, padding=1),
        nn.Dropout2d(0.5),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(980, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


def _build(name, config, shapes):
    """MultiVae's model with the convolutional networks of our config."""
    import multivae.models
    from multivae.models.base import BaseAEConfig
    from multivae.models.nn.mmnist import DecoderConvMMNIST, EncoderConvMMNIST

    kind, fields = MODELS[name]
    dims = {m: (shape[2], *shape[:2]) for m, shape in shapes.items()}
    scale = config.modality.likelihood_scale
    options = getattr(multivae.models, f"{kind}Config")(
        n_modalities=len(shapes),
        latent_dim=config.model.latent_dim,
        input_dims=dims,
        decoders_dist=dict.fromkeys(shapes, "laplace"),
        decoder_dist_params={m: {"scale": scale} for m in shapes},
        **fields,
    )
    own = BaseAEConfig(latent_dim=config.model.latent_dim, input_dim=(3, 28, 28))
    networks = {
        "encoders": {m: EncoderConvMMNIST(own, bias=True) for m in shapes},
        "decoders": {m: DecoderConvMMNIST(own) for m in shapes},
    }
    if name == "jmvae_kl":
        encoders = {m: EncoderConvMMNIST(own, bias=True) for m in shapes}
        networks["joint_encoder"] = _joint_encoder(encoders, config.model.latent_dim)
    return getattr(multivae.models, kind)(options, **networks)


def _joint_encoder(encoders, latent_dim):
    """An encoder a modality, whose outputs are a hidden layer."""
    import torch
    from multivae.models.nn import BaseJointEncoder
    from pythae.models.base.base_utils import ModelOutput

    class JointEncoder(BaseJointEncoder):
        def __init__(self):
            super().__init__()
            self.latent_dim = latent_dim
            self.encoders = torch.nn.ModuleDict(encoders)
            width = 2 * latent_dim * len(encoders)
            self.mean = torch.nn.Linear(width, latent_dim)
            self.log_variance = torch.nn.Linear(width, latent_dim)

        def forward(self, x):
            hidden = []
            for m, encoder in self.encoders.items():
                output = encoder(x[m])
                hidden += [output.embedding, output.log_covariance]
            h = torch.relu(torch.cat(hidden, dim=-1))
            return ModelOutput(
                embedding=self.mean(h), log_covariance=self.log_variance(h)
            )

    return JointEncoder()


def _copy(model, params):
    """Copies our parameters to the networks of MultiVae's model."""
    for m, encoder in model.encoders.items():
        _copy_encoder(encoder, params["encoders"][m]["params"])
    for m, decoder in model.decoders.items():
        _copy_decoder(decoder, params["decoders"][m]["params"])
    if "joint" in params:
        joint, own = model.joint_encoder, params["joint"]
        for m, encoder in joint.encoders.items():
            _copy_encoder(encoder, own["encoders"][m]["params"])
        _copy_dense(joint.mean, own["head"]["params"]["mean"])
        _copy_dense(joint.log_variance, own["head"]["params"]["log_variance"])


def _copy_encoder(encoder, params):
    """The three convolutions, the dense layer behind them, and the heads."""
    first, _, second, _, third, _, _, dense, _ = encoder.shared_encoder
    for i, conv in enumerate((first, second, third)):
        own = params[f"StridedConv_{i}"]
        _assign(conv, own["kernel"].transpose(3, 2, 0, 1), own["bias"])
    # PyTorch flattens channels first.
    own = params["Dense_0"]
    kernel = own["kernel"].reshape(4, 4, 128, -1).transpose(3, 2, 0, 1)
    _assign(dense, kernel.reshape(len(kernel), -1), own["bias"])
    head = params["GaussianHead_0"]
    _copy_dense(encoder.class_mu, head["mean"])
    _copy_dense(encoder.class_logvar, head["log_variance"])


def _copy_decoder(decoder, params):
    """The dense layer and the three transposed convolutions."""
    dense, _, _, first, _, second, _, third = decoder.decoder
    own = params["Dense_0"]
    kernel = own["kernel"].reshape(-1, 4, 4, 128).transpose(3, 1, 2, 0)
    bias = own["bias"].reshape(4, 4, 128).transpose(2, 0, 1)
    _assign(dense, kernel.reshape(2048, -1), bias.reshape(-1))
    for i, conv in enumerate((first, second, third)):
        own = params[f"StridedConvTranspose_{i}"]
        _assign(conv, own["kernel"].transpose(2, 3, 0, 1), own["bias"])


def _copy_dense(layer, params):
    """A dense layer."""
    _assign(layer, params["kernel"].T, params["bias"])


def _assign(layer, weight, bias):
    """Sets weight and bias of a layer of PyTorch."""
    import torch

    for own, value in ((layer.weight, weight), (layer.bias, bias)):
        value = torch.from_numpy(np.array(value, np.float32))
        if own.shape != value.shape:
            raise ValueError(f"shapes differ: {own.shape} and {value.shape}")
        with torch.no_grad():
            own.copy_(value)

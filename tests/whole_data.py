"""Whole data sets of a user, drawn by a seed: one or two .npz files, and a config.

`draw(seed)` is the same for one seed. How odd a data set is, is drawn too: of many
nothing is wrong, of others much. Nothing here says which are to be refused.
"""

from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from configs import arrays
from mmvae_jax.evaluation.metrics import METRICS
from mmvae_jax.mathematics.distributions import LIKELIHOODS

ODDITIES = (0.0, 0.0, 0.03, 0.03, 0.1, 0.3)  # probability of each thing that may be odd
COUNTS, FEW = (30, 12, 8), (3, 2, 1)  # examples
# Kind -> its usual likelihoods; the others do not fit it, or not its values.
KINDS = {
    "image": ("laplace", "laplace", "gaussian_learned", "gaussian_optimal"),
    "vector": ("gaussian", "gaussian", "gaussian_learned", "gaussian_optimal"),
    "tokens": ("categorical",),
    "counts": ("poisson", "negative_binomial"),
}
NAMES = ("m0", "image", "text", "x", "y", "vector", "sound", "text_1", "M", "ünïcode")
ODD_NAMES = (
    "a b",
    "a/b",
    "..",
    "../up",
    "/abs",
    "<b>",
    "%s",
    "{}",
    "{name}",
    "x" * 90,
    "label",
    "mask",
    "0",
    "a\nb",
    "'\"",
    "eval",
    "train/loss",
    "observed_",
    "params",
    "*",
    "a.b",
    "a+b",
    "",
)
MODELS = ("mopoe", "mopoe", "mopoe", "mvae", "mmvae", "unimodal", "mvtcae", "jmvae_kl")
ODD_MODELS = (
    "mvae_plus",
    "mmvae_official",
    "mmvae_plus",
    "dmvae",
    "crmvae",
    "jmvae",
    "telbo",
    "mmjsd",
    "mmvm",
    "contrastive",
)
# Metrics that a careful user asks for; of the others, two need weights from the web.
LABELLED = ("coherence", "frechet", "linear_probe")
OF_ATTRIBUTES = ("attributes", "one_to_many")
ALL_METRICS = tuple(sorted(set(METRICS) - {"fid", "conditional_fid", *OF_ATTRIBUTES}))
# What a user may not notice; only some of it is refused.
SLIPS = ("",) * 6 + ("channels first", "mask of ints", "class", "apart")
# Images whose rows are their channels.
CHANNELS_FIRST = ((3, 8, 8), (3, 8, 9), (1, 8, 10), (4, 8, 8), (2, 9, 8))


class DataSet(NamedTuple):
    """Arrays of a training and of a test file, and what a run of them is asked.

    Attributes:
      train: name -> array.
      test: likewise; None: one file.
      model: name.
      modalities: name -> settings of it.
      metrics: names.
      changes: other fields of the config, "section.field" -> value.
      shown: attribute -> the modalities that show it; `with_attributes` has its values.
      noted: modality -> words; a run says them of it, if it ends.
      words: what was drawn, for the line of a failure.
    """

    train: dict
    test: dict | None
    model: str
    modalities: dict
    metrics: tuple
    changes: dict
    shown: dict
    noted: dict
    words: tuple

    def write(self, folder):
        """Writes the files, and makes the config of a run of two steps."""
        config = arrays.get_config(self.model)
        config.update_from_flattened_dict(TINY | self.changes)
        for name, settings in self.modalities.items():
            if "." not in name:  # which no config can set
                config.modalities[name] = ConfigDict(settings)
        config.eval.metrics = self.metrics
        config.data.data_dir = str(folder / "data")
        for field, content in (("path", self.train), ("test_path", self.test)):
            if content is not None:
                config.data[field] = str(folder / f"{field}.npz")
                np.savez(config.data[field], **content)
        return config

    def with_attributes(self, dataset):
        """The loaded data with the attributes, which .npz files do not have.

        The values of each are those of the labels, or of the rows, by another rule.
        """

        def values(split, size):
            rows = np.arange(split.num_examples)
            own = rows if split.labels is None else split.labels
            return (own % size).astype(np.int32)

        sizes = {name: 2 + i for i, name in enumerate(self.shown)}
        train, test = (
            split._replace(attributes={a: values(split, n) for a, n in sizes.items()})
            for split in (dataset.train, dataset.test)
        )
        names = {a: tuple(f"v{i}" for i in range(n)) for a, n in sizes.items()}
        return dataset._replace(
            train=train, test=test, attributes=names, shown=self.shown
        )


TINY = {
    "model.latent_dim": 4,
    "modality.network_options.widths": (4,),
    "train.num_steps": 2,
    "train.batch_size": 2,
    "train.log_every_steps": 1,
    "train.checkpoint_every_steps": 2,
    "classifier.network": "mlp",
    "classifier.num_steps": 2,
    "classifier.batch_size": 2,
    "matcher.network": "mlp",
    "matcher.feature_dim": 2,
    "matcher.num_steps": 2,
    "matcher.batch_size": 2,
    "eval.batch_size": 8,
    "eval.importance_samples": 2,
}


def draw(seed, oddity=None):
    """The data set of a seed; `oddity` in place of the drawn one."""
    return _Draw(seed, oddity).data_set()


class _Draw:
    """The draws of one seed, and words for those that are odd."""

    def __init__(self, seed, oddity):
        self.rng = np.random.default_rng(seed)
        drawn = self.one_of(ODDITIES)
        self.oddity = drawn if oddity is None else oddity
        self.slip = self.one_of(SLIPS) if oddity is None else ""
        self.words, self.noted = [self.slip] if self.slip else [], {}

    def one_of(self, choices):
        return choices[self.rng.integers(len(choices))]

    def is_odd(self):
        return self.rng.random() < self.oddity

    def odd(self, usual, choices):
        """`usual`, or one of some odd choices, which is then told."""
        choice = self.one_of(choices)
        if not self.is_odd():
            return usual
        self.words.append(getattr(choice, "__name__", str(choice))[:20])
        return choice

    def data_set(self):
        counts = [self.odd(self.one_of(COUNTS), FEW) for _ in range(2)]
        num_modalities = int(self.rng.integers(1, 5))
        names, kinds = [], {}
        for _ in range(num_modalities):
            name = self.odd(self.one_of(NAMES), ODD_NAMES)
            if name not in names:
                names.append(name)
                kinds[name] = self.one_of(tuple(KINDS))
        makers = {name: self.maker(kinds[name], name) for name in names}
        if self.slip == "mask of ints" and names and "mask" not in names:
            # What is observed, as numbers among the modalities.
            shape = (len(names),)
            makers["mask"] = lambda num: self.rng.integers(0, 2, (num, *shape))
            kinds["mask"] = "tokens"
            names.append("mask")
        train = {name: makers[name](counts[0]) for name in names}
        test = {name: makers[name](counts[1]) for name in names}
        self.add_words(train, test, kinds)
        if self.slip == "mask of ints" and "mask_words" not in train:
            self.noted["mask"] = "holds a 0 or 1 for each other modality"
        self.add_labels(train, test, counts)
        self.add_masks(train, test, counts, len(names))
        if self.rng.random() < 0.5:
            test = self.changed(test, names, counts[1])
        else:
            test = None
        shown = self.shown(names, train)
        return DataSet(
            train,
            test,
            self.odd(self.one_of(MODELS), ODD_MODELS),
            {name: self.settings(kinds[name], name) for name in names},
            self.metrics(train, kinds, shown),
            self.changes(),
            shown,
            self.noted,
            (self.oddity, *self.words),
        )

    def maker(self, kind, name):
        """num -> the array of a modality; kind, shape, type and range are drawn."""
        rng, size = self.rng, int(self.rng.integers(1, 5))
        if kind == "image":
            channels = self.odd((3,), ((), (1,), (2,), (4,), (5,), (0,), (2, 2)))
            shape = (8, self.odd(8, (5, 1, 0)), *channels)
            if self.slip == "channels first":
                shape = self.one_of(CHANNELS_FIRST)
            high = self.odd(256, (1, 2))
            dtype = self.odd(np.uint8, (bool, np.int64, np.int8, np.float32))
            if dtype == np.uint8 and self.slip == "channels first":
                dtype = self.one_of((np.uint8, np.float32))
            if shape in CHANNELS_FIRST and dtype in (np.uint8, np.float32):
                self.noted[name] = "looks like images"
            return lambda num: rng.integers(0, high, (num, *shape)).astype(dtype)
        if kind == "vector":
            shape = self.odd((size,), ((), (2, 3), (0,), (2, 2, 2, 2)))
            dtype = self.odd(
                np.float32,
                (np.float64, np.float16, np.complex64, "f4,i4", object, "<U3", ">f8"),
            )
            scale = self.odd(1.0, (0.0, 1e-30, 1e30, 1e38, 1e300, np.nan, np.inf))
            offset = self.odd(0.0, (1e6, -1e30))

            def vectors(num):
                x = offset + rng.normal(size=(num, *shape)) * scale
                with np.errstate(all="ignore"):
                    return x.astype(dtype)

            return vectors
        if kind == "counts":
            shape = self.odd((size,), ((), (0,), (2, 3), (400,)))
            rate = self.odd(3.0, (0.0, 1e-3, 1e6, 1e8))
            shift = self.odd(0, (-1, 0.5))
            dtype = self.odd(np.int64, (np.int32, np.uint16, np.float32, np.float16))

            def counts(num):
                with np.errstate(all="ignore"):
                    return (rng.poisson(rate, (num, *shape)) + shift).astype(dtype)

            return counts
        shape = self.odd((size,), ((), (0,), (1,), (2, 3), (40,)))
        low, high = self.odd((0, 5), ((0, 1), (-1, 5), (3, 5), (0, 120), (100, 101)))
        dtype = self.odd(np.int32, (np.int64, np.int8, np.uint16, np.uint64, ">i4"))

        def sequences(num):
            x = rng.integers(low, high, (num, *shape))
            return x.astype(dtype)

        return sequences

    def add_words(self, train, test, kinds):
        """Vocabularies of the tokens, in both files."""
        for name, kind in kinds.items():
            words = [f"w{i}" for i in range(5)]
            mode = self.odd(self.one_of(("all", "none")), ("few", "twice", "bytes"))
            if self.is_odd():
                kind = self.one_of(tuple(KINDS))
            if kind != "tokens" or mode == "none":
                continue
            words = {"few": words[:2], "twice": ["w"] * 5}.get(mode, words)
            dtype = "S2" if mode == "bytes" else None
            train[f"{name}_words"] = np.array(words, dtype)
            other = self.odd(
                words, (words[::-1], [*words, "more"], words[:-1], ["<b>", "", "\n"])
            )
            test[f"{name}_words"] = np.array(other, dtype)

    def add_labels(self, train, test, counts):
        if self.rng.random() < 0.3:
            return
        num = self.odd(4, (1, 2, 1000))
        dtype = self.odd(np.int64, (np.uint8, np.float64, bool, "<U2", np.int8))
        shift = self.odd(0, (-1, 10**7))
        later = self.odd(0, (1, 5))
        length = self.odd(0, (1, -1))
        for own, size, more in zip((train, test), counts, (0, later), strict=True):
            labels = np.arange(size + length) % num + shift + more
            if self.is_odd():
                labels = self.rng.permutation(labels)
            if self.is_odd():
                self.words.append("no labels")
                continue
            own[self.odd("labels", ("label",))] = labels.astype(dtype)

    def add_masks(self, train, test, counts, num_modalities):
        if self.rng.random() < 0.6 and self.slip not in ("class", "apart"):
            return
        slips = (self.slip, "")  # of the training file alone
        for own, size, slip in zip((train, test), counts, slips, strict=True):
            mask = self.rng.random((size, num_modalities)) < 0.7
            mask[np.arange(size), self.rng.integers(num_modalities, size=size)] = True
            mode = self.odd(slip, ("all", "alone", "never", "nothing", "narrow", "int"))
            if mode == "all":
                mask[:] = True
            if mode == "alone":  # never complete
                mask[:] = False
                mask[:, 0] = True
            if mode == "apart":  # one modality each
                mask = np.eye(num_modalities, dtype=bool)[
                    np.arange(size) % num_modalities
                ]
            labels = own.get("labels", np.zeros(0))
            if mode == "class" and labels.shape == (size,) and num_modalities > 1:
                mask[:] = True
                mask[labels == labels[0], 0] = False
            if mode == "never" and num_modalities > 1:
                mask[:, 0], mask[:, 1] = False, True
            if mode == "nothing":
                mask[0] = False
            if mode == "narrow":
                mask = mask[:, 1:]
            own["observed"] = mask.astype(int) if mode == "int" else mask
            for column, (_, x) in zip(mask.T, list(own.items()), strict=False):
                if x.dtype.kind == "f" and x.ndim and len(x) == len(column):
                    x[~column] = np.nan

    def changed(self, test, names, num):
        """The test file, in which something may not fit the training file."""
        name = self.one_of(names)
        mode = self.odd("", ("gone", "more", "order", "dtype", "shape", "short"))
        x = test[name]
        if mode == "gone":
            del test[name]
        if mode == "more":
            test["another"] = np.zeros((num, 2), np.float32)
        if mode == "order":
            test = dict(reversed(test.items()))
        if mode == "dtype" and x.dtype.kind in "iufb":
            with np.errstate(all="ignore"):
                test[name] = x.astype(self.one_of((np.float64, np.int16, np.uint8)))
        if mode == "shape":
            test[name] = np.concatenate([x, x], axis=-1) if x.ndim else x
        if mode == "short":
            test[name] = x[:-1] if x.ndim else x
        return test

    def settings(self, kind, name):
        """What a config says of a modality."""
        usual = self.one_of(KINDS[kind])
        settings = {"likelihood": self.odd(usual, tuple(LIKELIHOODS))}
        if self.is_odd():
            settings["library_size"] = self.one_of((1.0, 1e4, 1e30))
        if self.is_odd():
            settings["likelihood_scale"] = self.one_of((1e-30, 1e30, 0.01))
        if self.is_odd():
            settings["likelihood_weight"] = self.one_of((1e-6, 1e6))
        if self.is_odd():
            settings["count_padding"] = False
        return settings

    def shown(self, names, train):
        """Attributes, and the modalities that show them; mostly there are none."""
        if "labels" not in train or self.rng.random() < 0.7:
            return {}
        some = [name for name in names if self.rng.random() < 0.7] or names
        return {"hue": tuple(names), "size": tuple(some)}

    def metrics(self, train, kinds, shown):
        of_attributes = OF_ATTRIBUTES[:1] if shown else ()
        if any(1 < len(own) < len(kinds) for own in shown.values()):
            of_attributes = OF_ATTRIBUTES
        if self.is_odd():
            self.words.append("all metrics")
            return (*ALL_METRICS, *of_attributes)
        found = ["elbo", "log_likelihood"]
        found += [*LABELLED, *of_attributes] if "labels" in train else ()
        images = [train[name] for name, kind in kinds.items() if kind == "image"]
        found += ["swd"] if any(x.dtype == np.uint8 for x in images) else ()
        texts = [train[name] for name, kind in kinds.items() if kind == "tokens"]
        found += ["captions"] if any(x[:1].size > 1 for x in texts) else ()
        found += ["matching"] if len(kinds) > 1 and "observed" not in train else ()
        return tuple(found)

    def changes(self):
        """Fields of the config beside the modalities."""
        found = {}
        if self.is_odd():
            found["train.batch_size"] = self.one_of((1, 3, 8, 16))
        if self.is_odd():
            found["data.test_fraction"] = self.one_of((0.01, 0.5, 0.99))
        if self.is_odd():
            found["eval.num_examples"] = self.one_of((1, 2, 3))
        if self.is_odd():
            found["classifier.network"] = "conv"
        if self.is_odd():
            found["eval.batch_size"] = self.one_of((1, 3))
        return found

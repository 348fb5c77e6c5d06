"""Labels, colours and markers, also of models that nobody has listed."""

from matplotlib.colors import to_hex

from experiments.plans import names
from mmvae_jax.models import MODELS


def test_a_new_model_is_drawn_without_being_listed(monkeypatch):
    before = {model: to_hex(names.model_colour(model)) for model in MODELS}
    assert len(set(before.values())) == len(MODELS)
    for added in ("first", "second"):
        own = MODELS["mopoe"]._replace(label=f"the {added}")
        monkeypatch.setitem(MODELS, added, own)
    colours = {model: to_hex(names.model_colour(model)) for model in MODELS}
    assert len(set(colours.values())) == len(MODELS)
    assert before.items() < colours.items()
    assert names.model_label("second") == "the second"
    assert names.model_marker("second")
    assert sorted(MODELS, key=names.model_rank) == list(MODELS)


def test_a_model_that_is_gone_has_its_name():
    assert names.model_label("gone") == "gone"
    assert to_hex(names.model_colour("gone"))
    assert names.model_rank("gone") == len(MODELS)

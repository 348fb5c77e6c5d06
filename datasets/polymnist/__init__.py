"""PolyMNIST, Translated-PolyMNIST and repeated modalities: one recipe, one builder."""

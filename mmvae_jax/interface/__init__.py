"""Public functions that train, load and apply a model.

`mmvae_jax.fit`, `load`, `embed`, `impute`, `generate`, `score`, `reconstruct` and
`export` are defined here. `description` documents their input and output arrays.
"""

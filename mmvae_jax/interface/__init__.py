"""Public functions: fit or load a model, and apply it to arrays.

`mmvae_jax.fit`, `load`, `embed`, `impute`, `generate`, `score`, `reconstruct` and
`export` are defined here. `description` says which arrays they take and return.
"""

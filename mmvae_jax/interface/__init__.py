"""Calls of those who use a model: fit or load one, and apply it to arrays.

`mmvae_jax.fit`, `load`, `embed`, `impute`, `generate`, `score`, `reconstruct` and
`export` are the functions of this room. Arrays go in and come out in the form that
users have them in (`description`).
"""

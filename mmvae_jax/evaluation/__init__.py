"""Evaluation of a trained model.

metric        the types of a metric and of its input data
metrics/      one file per metric, and the table of all
judges/       classifiers, readers and matchers that metrics need
needs         checks of the needs of metrics, before training
generate      batches of test data, and generated examples for metrics
conditionals  one modality, generated from others of the same test example
evaluate      all metrics of a member
samplers      densities fitted to latents, for unconditional examples
samples       generated examples for pictures
pictures      samples as pictures and text
"""

"""Evaluation of a trained model.

metric        a metric as data, the examples and networks it is computed with
metrics/      one file a metric, and the table of all
judges/       classifiers, readers and matchers that metrics need
needs         checks of what metrics need, before anything is trained
generate      batches of test data, and examples that a model generates for metrics
conditionals  what test examples are given, and one modality generated from it
evaluate      all metrics of a member
samplers      densities of latents, from which unconditional examples are drawn
samples       generated examples to be shown
pictures      samples as pictures and text
"""

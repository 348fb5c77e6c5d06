"""The mathematics of multimodal VAEs: arrays in, arrays out."""

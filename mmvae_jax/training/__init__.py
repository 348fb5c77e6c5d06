"""The train step, the train loop, sweeps, devices, checkpoints and the log."""

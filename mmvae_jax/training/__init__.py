"""Training of all members of a sweep in one program.

step         the pure train step of one member
schedules    factors of beta and of the learning rate over a run
execution    the compiled program of a sweep: precision, steps per call, initial states
sweep        the grid of a sweep, and how members are mapped
mapping      choice of the mapping, within the memory of a device
devices      placement of members and examples on devices
loop         `fit`, the one train loop
checkpoints  saving and restoring states
log          metrics.jsonl, TensorBoard and samples
"""

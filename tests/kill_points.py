"""Code that ends a run at one point; a test gives it to `commands` or a server."""

# Right after the checkpoint of a step.
AFTER_A_CHECKPOINT = """
import os, signal
from mmvae_jax.training import checkpoints
save = checkpoints.save
def save_and_die(manager, step, *given):
    save(manager, step, *given)
    if step == {step}:
        manager.wait_until_finished()
        os.kill(os.getpid(), signal.SIGKILL)
checkpoints.save = save_and_die
"""

"""Training and evaluation: recipe, optimiser, the distributed loop, checkpoints, metrics."""

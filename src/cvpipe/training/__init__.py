"""Training: the command, the fit, checkpoints."""

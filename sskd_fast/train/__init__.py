"""The training loop, its engine and schedule, the training state, and the log."""

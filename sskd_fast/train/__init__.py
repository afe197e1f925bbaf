"""The training loop, the stages, and what a run keeps in its folder."""

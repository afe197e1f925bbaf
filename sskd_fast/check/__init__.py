"""Checks of a data set before training: `python -m sskd_fast.check DATA...`."""

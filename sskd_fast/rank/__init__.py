"""Unlabelled images in the order in which labels would tell most: `python -m sskd_fast.rank RUN IMAGES...`."""

"""Unlabelled images ordered by how much their labels would teach: `python -m sskd_fast.rank RUN IMAGES...`."""

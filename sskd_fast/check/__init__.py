"""A data set checked and summed up before anything is trained: `python -m sskd_fast.check DATA...`."""

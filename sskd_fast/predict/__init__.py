"""Prediction of folders of images and of videos: `python -m sskd_fast.predict MODEL IMAGES...`."""

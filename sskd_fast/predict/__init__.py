"""Prediction on folders of images and on videos: `python -m sskd_fast.predict MODEL IMAGES...`."""

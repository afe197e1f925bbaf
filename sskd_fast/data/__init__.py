"""Images and labels: COCO files, plain folders, splits, views, batches, checks, and the embedded data set."""

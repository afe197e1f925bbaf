"""Networks: backbones, pixel decoder, queries, mask decoder, and prediction by tiles."""

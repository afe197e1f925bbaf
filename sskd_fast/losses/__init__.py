"""The set loss, the contrastive loss, and the objective that combines them."""

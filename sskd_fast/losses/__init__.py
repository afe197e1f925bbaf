"""The set loss, the contrastive loss and the one objective made of them."""

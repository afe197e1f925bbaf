"""The operators in plain PyTorch: the formulas that every other backend is tested against."""

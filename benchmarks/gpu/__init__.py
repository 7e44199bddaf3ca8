"""The speed of training on one GPU."""

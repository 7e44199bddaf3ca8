"""The one training loop. It knows no model: it is given a step function."""

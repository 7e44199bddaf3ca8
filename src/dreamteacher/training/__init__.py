"""The training loop of all stages. It is independent of the model: stages pass a step function."""

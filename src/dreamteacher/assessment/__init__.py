"""Predict the gain of pretraining before it is run, from short trainings from scratch."""

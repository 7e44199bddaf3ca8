"""What pretrains a backbone without labels: feature distillation and the baselines beside it, one file a method."""

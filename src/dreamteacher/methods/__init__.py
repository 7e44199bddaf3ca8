"""Methods that pretrain a backbone without labels: feature distillation and the baselines, one file per method."""

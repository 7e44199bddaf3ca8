"""Pictures and labels: from whatever a source holds to one checked data set, and its samples for training."""

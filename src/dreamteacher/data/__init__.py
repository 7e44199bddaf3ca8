"""Pictures and labels: reading a source, building the checked data set, and loading its samples for training."""

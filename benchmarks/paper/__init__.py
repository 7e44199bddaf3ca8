"""The tables of the paper and comparisons of ours, on any set of pictures."""

"""The HTML report of a run, and the figures, plots and tables that stages write."""

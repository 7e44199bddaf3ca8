"""The HTML page of a run, and the figures, plots and tables that stages leave for it."""

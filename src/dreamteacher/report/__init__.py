"""The HTML report of a run, and the pictures, plots and tables that stages write."""

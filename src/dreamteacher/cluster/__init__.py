"""Processes of one stage on one node or several, on a cluster."""

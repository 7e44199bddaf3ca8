"""Generators whose features are distilled, one file a kind, and the import of what others trained."""

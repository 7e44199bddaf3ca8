"""The chain, one module per stage: its `run` reads inputs, calls the other packages, and writes one folder."""

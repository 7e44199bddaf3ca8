"""The chain, one module a stage: its `run` reads inputs, wires the other packages, and writes one folder."""

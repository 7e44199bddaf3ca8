"""Teachers: generators whose features are distilled, one file per kind, and the import of trained generators."""

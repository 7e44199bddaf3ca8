"""Every setting, typed; its file, its defaults by size, and its table in the docs."""

"""The life of a registered model: its versions, what a new one must show, promotion and rollback."""

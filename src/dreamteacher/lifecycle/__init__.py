"""Life cycle of a registered model: versions, promotion gates, promotion and rollback."""

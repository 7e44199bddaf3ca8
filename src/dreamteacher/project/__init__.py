"""A new project around a user's own pictures: `dreamteacher init`."""

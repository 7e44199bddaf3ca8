"""How a student learns from a teacher: objectives, whitening, teams of teachers, and the feature interpreter."""

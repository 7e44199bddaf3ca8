"""What to expect of a pretraining before it is run: which short trainings tell, and what follows from their figures."""

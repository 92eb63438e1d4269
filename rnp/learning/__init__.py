"""Q-learning of the decision network."""

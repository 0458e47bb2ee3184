"""What a study says of its target: the ladder's fit, the recommendation, the registered forecast."""

"""What a particle at level t already knows of the observations."""

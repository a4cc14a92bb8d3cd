"""A user's model as its diffusion sites and everything else: the only room that traces a model."""

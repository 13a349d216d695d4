"""The embedded world: scenes and captions drawn from a seed, and the small models trained on them."""

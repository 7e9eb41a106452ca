"""Weights that are quantised on the activations of texts and images."""

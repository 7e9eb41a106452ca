"""Graphs and weights as the files of a package."""

"""Folders that appear complete or not at all, JSON files, and free space."""

"""Folders that appear whole, JSON files, and room on the disk."""

"""Arrays that are computed when they are written."""

"""Structured answers: a schema, a regular expression or choices -> tokens that may come next."""

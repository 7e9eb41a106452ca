"""Packages in the forms that other runtimes open."""

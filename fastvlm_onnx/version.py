"""The version of this project, in a module that imports no other."""

__version__ = "0.2.0.dev0"

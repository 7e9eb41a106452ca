"""Values of a package by which a port can check itself: `golden.json`."""

"""Bad inputs from a seed, each run in a child process with limits, and judged.

`python -m tests.hostile --cases 1000 --seed 1` runs cases of every class and prints a table. It
needs Linux, for its limits and for fork.
"""

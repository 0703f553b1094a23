"""One deterministic simulation of a whole fleet on one store, from one seed; ``python -m tests.sim --help``.

Publishers, nodes and readers are the engine itself, each with its own directories, clock and entropy. They run in
threads of which one runs at a time: at every call of the store, every sleep and every local rename the seed says who
goes on, and what goes wrong. A model of every seq (history.py) is compared after every step.
"""

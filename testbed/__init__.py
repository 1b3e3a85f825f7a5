"""Real parts to try hostprep with: a private engine, images without a registry, the engines of other releases.

The demo, the benchmarks and the tests import from here, and never from each other.
"""

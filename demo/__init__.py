"""Show hostprep at work on a private Docker engine: `make demo`."""

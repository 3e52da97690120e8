"""The load generator and the side-by-side benchmark: ``python -m bench``, ``python -m bench.loadgen``."""

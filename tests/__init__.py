"""The tests of storescp, for trial: one module for each of the package, and some for the whole."""

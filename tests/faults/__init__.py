"""Proofs that no acknowledged image is ever lost: scenarios with bounds, for short tests and for ``make torture``."""

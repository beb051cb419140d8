"""Fit one member to a dataset."""

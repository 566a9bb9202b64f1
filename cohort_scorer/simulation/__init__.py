"""Whole studies with known truth. Always labelled simulated."""

"""Estimates with their intervals. Knows no file and no study."""

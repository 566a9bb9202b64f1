"""Score chest X-ray archives for coronary calcium categories and compare their prognostic value with the truth."""

from importlib.metadata import version

__version__ = version("cohort-scorer")

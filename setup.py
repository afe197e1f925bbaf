"""Everything is declared in pyproject.toml; this file is what tools that look for a setup.py find."""

from setuptools import setup

setup()

"""Tokkata: music from audio, through codec tokens, with models you train yourself."""

from importlib.metadata import version

__version__ = version("tokkata")

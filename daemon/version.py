"""The version of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tdpipe")
except PackageNotFoundError:  # the program runs from its source folder
    VERSION = "not installed"

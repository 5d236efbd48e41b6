"""The version: that of the installed package."""

from importlib.metadata import PackageNotFoundError, version

try:
    VERSION = version("tdpipe")
except PackageNotFoundError:  # it runs from its source folder
    VERSION = "not installed"

"""Experiments that overload or attack a running daemon."""

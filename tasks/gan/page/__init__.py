"""A local page that shows two generators side by side on any image."""

from .server import Comparison, InputError, main, make_server

__all__ = ["Comparison", "InputError", "main", "make_server"]

"""Cutting parts out of a model: what its parts are, which matter least, and the surgery. Imports torch; techniques load it lazily."""

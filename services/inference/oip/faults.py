"""What the protocol knows and this server does not offer."""


class NotOffered(Exception):
    """A part of the protocol that is not implemented here; asking again does not help."""

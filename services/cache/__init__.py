"""The cache service: bytes under keys, with a time to live and a limit in bytes."""

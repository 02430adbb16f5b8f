"""The Open Inference Protocol door: thin converters between its messages and the one core."""

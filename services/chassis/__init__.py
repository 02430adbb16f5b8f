"""What makes any program here a well-behaved gRPC process. Knows no contract of ours and no torch."""

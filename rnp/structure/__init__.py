"""What of a network can run on a prefix of its channels, and how channels are grouped."""

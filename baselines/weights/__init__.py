"""Methods that change single weights: zeros in place of values."""

"""Methods that remove channels for good, so that every image costs less."""

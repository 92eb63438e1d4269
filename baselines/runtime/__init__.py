"""Methods that decide image by image what to compute."""

"""Runtime Neural Pruning, its parts, and the control that it is held against."""

"""Runtime Neural Pruning: a network computes, for each image, only the channels it needs."""

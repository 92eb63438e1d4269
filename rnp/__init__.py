"""Runtime Neural Pruning: a decision network computes, for each image, only the channels it needs."""

"""Passes of images through a backbone of which each computes only the channels decided upon."""

"""One command for each claim of speed."""

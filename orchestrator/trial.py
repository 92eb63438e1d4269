"""The command line `python -m orchestrator.trial SWEEP.yaml [--only METHOD]`: a sweep without Ray.

Runs the same trials in this one process and leaves the same files behind, on a machine without Ray,
Optuna or MLflow. Options must be grids and fixed values, as nothing searches here.

Exit status: 0 all trials completed, 1 some failed, 2 bad input, 130 interrupted.
"""

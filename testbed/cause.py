"""First cause of an error, in one line."""


def first_cause(error: BaseException) -> str:
    """The type and the first line of what an error came from in the first place."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).partition("\n")[0].strip().rstrip(".")
    return f"{type(error).__name__}: {said}"

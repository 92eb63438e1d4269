"""Dispatch mode of torch that does not load torch's compiler, whose import takes three seconds."""

from torch.utils._python_dispatch import TorchDispatchMode


class DispatchMode(TorchDispatchMode):
    """Sees every operation that runs while it is active.

    As torch has it, a mode loads the compiler at its first operation, to be left out of what a user
    compiles. This one is not left out.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

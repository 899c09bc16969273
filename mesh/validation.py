"""What pydantic found wrong, in one line."""

from pydantic import ValidationError


def faults(err: ValidationError, whole: str) -> str:
    """Return every fault: where it is, what is wrong there, and what came.

    Args:
        err: of a model.
        whole: names what was validated, for a fault that is of no field.
    """
    return "; ".join(
        f"{'.'.join(map(str, e['loc'])) or whole}: {e['msg']} (came {e['input']!r:.80})"
        for e in err.errors()
    )

"""Names of classes, for Triton's classification extension."""

from pathlib import Path

from tritonclient.grpc import model_config_pb2 as triton

Labels = tuple[tuple[str, tuple[str, ...]], ...]
"""An output, and its classes in their order."""


def labels_of(message: triton.ModelConfig, folder: Path) -> Labels:
    """Return the labels of each output that has a `label_filename`: one in a line of the file.

    Args:
        message: a model's config.
        folder: of the model.

    Raises:
        ValueError: a file cannot be read.
    """
    found = []
    for output in message.output:
        if output.label_filename:
            path = folder / output.label_filename
            try:
                lines = path.read_text(encoding="utf-8").splitlines()
            except (OSError, UnicodeDecodeError) as err:
                raise ValueError(
                    f"label_filename of output {output.name!r} cannot be read: {err}"
                ) from err
            found.append((output.name, tuple(line.strip() for line in lines)))
    return tuple(found)

"""The recorded program of a model as an ONNX file."""

import contextlib
import importlib
import io
import logging
import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn

from robustness.errors import UsageError, in_words, is_exhausted, one_line
from robustness.programs.graph import Program

PRODUCER = "lyanet-robustness"


class _Replay(nn.Module):
    """A program as a module."""

    def __init__(self, program: Program) -> None:
        super().__init__()
        self.program = program

    def forward(self, image: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 classes"]:
        return self.program.run(image)


def onnx_bytes(program: Program) -> bytes:
    """A recorded program, operation by operation, for one image.

    What is exported is what certificates speak of: the steps of a solver are unrolled, and
    normalisation stands inside. Input `image`, shape (1, c, h, w), pixels in [0, 1]; output
    `logits`, shape (1, classes).

    Raises:
        UsageError: the optional packages are missing, or torch has no ONNX for an operation.
    """
    for package in ("onnx", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError:
            raise UsageError(
                f"expected the package {package} for an export, got none; install it: "
                "pip install 'lyanet-robustness[onnx]'"
            ) from None
    image = torch.rand(program.image.shape, generator=torch.Generator().manual_seed(0))
    logging.disable(logging.WARNING)  # what torch says to its own authors
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            exported = torch.onnx.export(
                _Replay(program).eval(),
                (image,),
                dynamo=True,
                verbose=False,
                input_names=["image"],
                output_names=["logits"],
            )
        assert exported is not None
        graph = exported.model_proto
        graph.producer_name = PRODUCER
        content: bytes = graph.SerializeToString()
    except Exception as error:
        if is_exhausted(error):
            raise
        raise UsageError(
            f"expected operations that ONNX has, got {one_line(in_words(error), 150)}; export "
            "another model"
        ) from error
    finally:
        logging.disable(logging.NOTSET)
    return content

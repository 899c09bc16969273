"""All cases by their names, in the order in which they are run."""

from tests.e2e.conformance import grpc_cases, http_cases, life_cases
from tests.e2e.conformance.calls import Case

CASES: dict[str, Case] = {}
for module in (grpc_cases, http_cases, life_cases):
    for name, case in module.cases():
        if name in CASES:
            raise ValueError(f"two cases are named {name!r}")
        CASES[name] = case

NOT_COMPARED = {
    "classes of a BYTES output": "the process of this release of Triton ends by such a request",
    "shared memory of GPUs": "this machine need not have one",
    "sequences, response cache, rate limits": "a mesh has none; models with them are refused",
    "GPUs, TensorRT, other backends": "this build of Triton has its Python backend only",
    "TLS and restricted routes": "not started so on either side",
}
"""What cannot be asked of both, and why."""

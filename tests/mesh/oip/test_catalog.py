"""What every catalog has."""

import inspect

import pytest

from gateway.catalog import PipelineCatalog
from infer_svc.catalog import ModelCatalog
from mesh.oip.catalog import Catalog


@pytest.mark.parametrize("kind", [PipelineCatalog, ModelCatalog])
def test_each_process_has_a_catalog_with_all_methods(kind: type) -> None:
    for name, method in inspect.getmembers(Catalog, inspect.isfunction):
        if not name.startswith("_"):
            assert inspect.signature(getattr(kind, name)) == inspect.signature(method)

"""Python models of Triton's ensembles; its Python backend finds each as `model.py`."""

"""`python -m preprocess_svc`: one replica of the preprocess stage, or a parent of several."""

from importlib import import_module

from mesh.process import pin

if __name__ == "__main__":
    pin()  # before anything imports what makes threads
    kind = import_module("preprocess_svc.settings").PreprocessSettings
    import_module("mesh.workers").run_stage("preprocess", kind)

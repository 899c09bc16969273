"""`python -m postprocess_svc`: one replica of the postprocess stage, or a parent of several."""

from importlib import import_module

from mesh.process import pin

if __name__ == "__main__":
    pin()  # before anything imports what makes threads
    kind = import_module("postprocess_svc.settings").PostprocessSettings
    import_module("mesh.workers").run_stage("postprocess", kind)

"""Parameters, multiply-accumulates, latency and memory of a config's network."""

if __name__ == "__main__":
    from taskdistill.tasks.openmm.cli import run
    from taskdistill.tasks.openmm.profile import main

    run(main, resumes=False)
else:
    # Python looks into the folder of the script it runs first, so that every script here that
    # imports the standard library's `profile` (cProfile does, and torch's compiler that) gets this
    # file. It hands them what they meant.
    import sys
    import sysconfig
    from importlib.machinery import PathFinder
    from importlib.util import module_from_spec

    _spec = PathFinder.find_spec(__name__, [sysconfig.get_path("stdlib")])
    if _spec is None or _spec.loader is None:
        raise ImportError(f"The standard library has no module {__name__!r}.")
    sys.modules[__name__] = module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules[__name__])

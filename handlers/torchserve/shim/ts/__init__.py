"""The `ts` package that handlers in TorchServe's style import. It needs no torch until a base handler is imported.

What must not live here: anything of actorserve; these modules see only what the loader hands them.
"""

__version__ = "0.12.0"

"""A folder for `sys.path`, of workers of TorchServe models only: `ts` lies in it."""

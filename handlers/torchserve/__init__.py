"""Handlers in TorchServe's style, served by native workers (docs/torchserve-handlers.md)."""

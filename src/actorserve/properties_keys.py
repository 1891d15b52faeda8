"""Every key that TorchServe 0.12.0's config.properties knows: those with a meaning here, and why the others have none.

docs/torchserve-configuration.md has a row for each. What must not live here: anything but names and words.
"""

from __future__ import annotations

TRANSLATED = frozenset(
    (
        *("grpc_inference_address", "grpc_inference_port", "grpc_management_address", "grpc_management_port"),
        *("grpc_inference_max_connection_age_ms", "grpc_inference_max_connection_age_grace_ms"),
        *("grpc_management_max_connection_age_ms", "grpc_management_max_connection_age_grace_ms"),
        *("enable_grpc_ssl", "certificate_file", "private_key_file", "max_request_size", "max_response_size"),
        *("job_queue_size", "default_workers_per_model", "default_response_timeout", "default_startup_timeout"),
        *("unregister_model_timeout", "number_of_gpu", "load_models", "models", "model_snapshot", "model_store"),
        *("install_py_dep_per_model", "allowed_urls", "use_env_allowed_urls", "enable_envvars_config"),
        *("enable_model_api", "disable_token_authorization", "token_expiration_min", "blacklist_env_vars"),
        *("service_envelope", "default_service_handler", "limit_max_image_pixels", "debug"),
    )
)
"""Keys that translation.py gives a meaning."""

_REST = "there is no REST API here, gRPC alone"
_JVM = "there is no JVM here"
_METRICS = "metrics are not written as TorchServe does"
_PORTS = "workers have no ports"

WITHOUT_EFFECT = {
    "inference_address": _REST,
    "management_address": _REST,
    "metrics_address": _REST,
    "keystore": f"{_REST}; gRPC takes certificate_file and private_key_file",
    "keystore_pass": f"{_REST}; gRPC takes certificate_file and private_key_file",
    "keystore_type": f"{_REST}; gRPC takes certificate_file and private_key_file",
    "cors_allowed_origin": _REST,
    "cors_allowed_methods": _REST,
    "cors_allowed_headers": _REST,
    "decode_input_request": f"{_REST}: inputs of gRPC are bytes",
    "number_of_netty_threads": _JVM,
    "netty_client_threads": _JVM,
    "prefer_direct_buffer": _JVM,
    "use_native_io": _JVM,
    "io_ratio": _JVM,
    "vmargs": _JVM,
    "plugins_path": _JVM,
    "async_logging": "the log never holds up a call",
    "metrics_mode": _METRICS,
    "metrics_config": _METRICS,
    "enable_metrics_api": _METRICS,
    "model_metrics_auto_detect": _METRICS,
    "disable_system_metrics": _METRICS,
    "metric_time_interval": _METRICS,
    "system_metrics_cmd": _METRICS,
    "initial_worker_port": _PORTS,
    "initial_distribution_port": _PORTS,
    "cpu_launcher_enable": "cores are shared out among workers by `threads`",
    "cpu_launcher_args": "cores are shared out among workers by `threads`",
    "ipex_enable": "intel_extension_for_pytorch is not used",
    "ipex_gpu_enable": "intel_extension_for_pytorch is not used",
    "workflow_store": "workflows are not served, as TorchServe does not over gRPC",
    "model_server_home": "the server has no home folder",
    "model_config": "model-config.yaml is in the archives",
    "snapshot_store": "the registry takes the place of snapshots (docs/state.md)",
    "version": "it is the version of a snapshot's format",
    "ts_open_inference_protocol": "the open inference protocol is not served",
    "ts_header_key_sequence_id": "TorchServe does not hand it to workers either",
    "ts_header_key_sequence_start": "TorchServe does not hand it to workers either",
    "ts_header_key_sequence_end": "TorchServe does not hand it to workers either",
}
"""Keys that are accepted and named once, and why they have no effect."""

KNOWN = TRANSLATED | WITHOUT_EFFECT.keys()

FLAGS_WITHOUT_EFFECT = {
    "--workflow-store": "workflows are not served, as TorchServe does not over gRPC",
    "--log-config": "its format is log4j's; use [log]",
    "--cpp-log-config": "there are no workers in C++",
    "--plugins-path": _JVM,
}

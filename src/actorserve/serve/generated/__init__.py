"""The stubs of Ray Serve's schema as grpcio's users know them: `serve_pb2`, `serve_pb2_grpc`."""

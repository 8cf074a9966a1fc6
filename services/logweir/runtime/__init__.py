"""What wraps a process: settings, logs, metrics, HTTP, the life from start to SIGTERM."""

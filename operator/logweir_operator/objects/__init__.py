"""Kubernetes objects by subject; `manifests.py` puts them in order. Pure."""

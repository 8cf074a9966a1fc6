"""Logweir on one machine: embedded servers, a supervisor and a folder of manifests."""

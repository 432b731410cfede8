"""Containers, manifests, runbooks, and emulators for development."""

"""The volume driver protocol on a Unix socket, for Docker and Podman.

May import: errors, options, host, settings, engine, volumes.
"""

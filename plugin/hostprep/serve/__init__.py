"""The volume driver protocol on a Unix socket, for Docker and Podman.

May import: errors, options, host, settings, volumes, and engine where images are asked for.
"""

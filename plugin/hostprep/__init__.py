"""hostprep: a Docker volume driver that makes the host directory ready for the container that will use it."""

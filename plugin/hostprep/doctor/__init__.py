"""Why a container cannot use a volume, and what mends it.

May import: errors, options, host, settings, engine, volumes.
"""

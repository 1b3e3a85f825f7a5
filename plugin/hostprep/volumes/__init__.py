"""Volumes on disk, and the verbs of a volume driver over them.

May import: errors, options, host, settings, tree. Not engine: who asks one hands it in.
"""

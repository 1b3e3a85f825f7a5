"""The command line: each module has a group of commands and what they print.

May import: errors, options, host, settings, tree, engine, volumes, doctor, serve. Of serve only what starts it.
"""

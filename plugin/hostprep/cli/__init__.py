"""The command line: each module has a group of commands and what they print.

May import everything else; serve only to start it.
"""

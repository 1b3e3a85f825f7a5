"""The manual pages, made of what hostprep says elsewhere: --help of each command, and README.

`python -m manual DIR` writes them to DIR/man8 and DIR/man5. It needs no package but those of hostprep: click-man knows
section 1 only and the commands that are imported already, and has no place for exit codes, files and examples.
"""

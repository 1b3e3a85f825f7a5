"""One directory, and everything below it, made right or removed, while its owner may be changing it.

May import: errors, options, host.
"""

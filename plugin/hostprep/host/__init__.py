"""What the kernel offers: descriptors, locks, mounts, labels, processes. Nothing here knows a volume.

May import: errors, options.
"""

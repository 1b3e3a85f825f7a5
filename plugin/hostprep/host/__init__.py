"""What the kernel offers: descriptors, locks, mounts, labels, processes. It knows no volume.

May import: errors, options.
"""

"""What an engine, or an archive that one wrote, says of images and containers.

May import: errors, options, host.
"""

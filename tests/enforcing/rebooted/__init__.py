"""After a power cut in the guest: __main__ runs before it, the tests after it (tests/enforcing/run)."""

CONTAINERS = ("one", "two", "three")
START = "echo started >> /data/starts; exec sleep 600"

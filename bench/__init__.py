"""What hostprep's speed claims rest on. `make bench` prints the tables that the README carries."""

"""JSON Schemas of what ostate writes and prints; data only."""

"""What a probe measures, and the protocol of `ostate probe`."""

"""The data that travels, and the files that it travels through. Imports nothing of ostate but its errors."""

"""What every other package uses: names, and nothing of ostate but its errors."""

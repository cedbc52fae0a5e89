"""What the tests read: Gram matrices and row norms of weights and moments, accumulated in one pass."""

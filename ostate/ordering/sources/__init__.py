"""Where names come from: one module a source of claims."""

"""Names from the model itself, built again without weights from the configurations beside the adapter."""

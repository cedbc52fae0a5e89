"""One function a command: here the packages are joined."""

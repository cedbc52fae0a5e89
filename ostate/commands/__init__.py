"""One function a command: here the rooms are joined."""

"""What a person or a cluster starts: the commands and the demo."""

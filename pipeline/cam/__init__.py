"""The mathematics of class activation maps: knows torch, knows no file and no Ray."""

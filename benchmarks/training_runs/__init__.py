"""Speed, memory and interruptions of training."""

"""Speed, side by side: what the project takes and what a known operation takes on the same machine in the same run."""

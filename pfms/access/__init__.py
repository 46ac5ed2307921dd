"""Who calls, what they may do, and how pfms knows."""

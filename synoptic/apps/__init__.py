"""What people type and look at."""

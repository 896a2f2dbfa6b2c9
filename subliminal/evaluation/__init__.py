"""What a student is asked, how its answers are scored, and what may be concluded."""
